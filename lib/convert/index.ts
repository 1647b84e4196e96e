/**
 * Legacy (v1) images of Xen 4.0 to 4.5 to Migration v2 streams. Public surface of `xen-migration/convert`.
 *
 * @module
 */
export { convert, startConvert } from './convert.js';
export type { ConvertJob, ConvertOptions, ConvertOutput, ConvertResult } from './types.js';
export type { TmemChoice, TmemPoolSummary, TmemSummary } from './tmem.js';
export {
  configOfXend,
  isSxpList,
  parseSxp,
  type Sxp,
  type SxpAtom,
  type SxpList,
  type XendConfig,
} from './xend/index.js';
