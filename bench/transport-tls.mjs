/** The certificates of the tests, for both ends. */
import { fileURLToPath } from 'node:url';

/** @param {'client' | 'server'} name */
export function certificates(name) {
  const file = (what) => fileURLToPath(new URL(`../test/certs/${what}`, import.meta.url));
  return { cert: file(`${name}.crt`), key: file(`${name}.key`), ca: file('ca.crt') };
}
