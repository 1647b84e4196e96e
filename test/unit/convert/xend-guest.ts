/** Small guests in xend's words, and what becomes of them. */

import { configOfXend, parseSxp, type XendConfig } from '../../../lib/convert/xend/index.js';
import { bytesOf } from './xend-samples.js';

export function convert(text: string): XendConfig {
  return configOfXend(parseSxp(bytesOf(text), { offset: 20 }));
}

export const UUID = '(uuid 00000000-0000-4000-8000-000000000009)';

export interface Parts {
  /** Members of the domain beside name, uuid and memory. */
  readonly domain?: string;
  readonly kind?: 'linux' | 'hvm';
  /** Members of the image beside a kernel. */
  readonly image?: string;
  readonly devices?: readonly string[];
}

export function guest({ domain = '', kind = 'linux', image = '', devices = [] }: Parts): XendConfig {
  const list = devices.map((device) => `(device ${device})`).join(' ');
  const kernel = kind === 'linux' ? '(kernel /k)' : '';
  return convert(
    `(domain (name n) ${UUID} (memory 64) ${domain} (image (${kind} ${kernel} ${image})) ${list})`,
  );
}

export type Json = Record<string, unknown>;

export function build(parts: Parts): Json {
  return guest(parts).config['b_info'] as Json;
}

export function hvm(image: string): Json {
  return build({ kind: 'hvm', image })['type.hvm'] as Json;
}
