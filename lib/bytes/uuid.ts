/** UUIDs as text and as bytes. */

/** `4458989b-3afe-4440-9394-b06ebb2c7bcd` of 16 bytes. */
export function uuidText(handle: Uint8Array): string {
  const hex = Buffer.from(handle).toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

/** The 16 bytes of a UUID, or undefined if the text is none. */
export function uuidBytes(text: string): Uint8Array | undefined {
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text)) return undefined;
  return new Uint8Array(Buffer.from(text.replaceAll('-', ''), 'hex'));
}
