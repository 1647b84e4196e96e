/** Save files of xend: their head, their configuration, and libxl's configuration made of it. */

export { decodeXendFixedHeader, decodeXendHeader, encodeXendHeader, type XendHeader } from './header.js';
export { XEND_CONFIG_MAX, XEND_HEADER_SIZE, XEND_SIGNATURE } from './constants.js';
export { isSxpList, parseSxp, type Sxp, type SxpAtom, type SxpList } from './sxp.js';
export { configOfXend, type XendConfig } from './config.js';
