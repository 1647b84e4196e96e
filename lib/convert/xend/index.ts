/** xend's configuration of a domain, and libxl's made of it. The file's head is read by lib/stream/xend. */

export { isSxpList, parseSxp, type Sxp, type SxpAtom, type SxpList } from './sxp.js';
export { configOfXend, type XendConfig } from './config.js';
