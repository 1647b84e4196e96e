/** Text from elsewhere (a peer, a stream, a guest's configuration), fit for a terminal and a log line. */

/** Control characters, line and paragraph separators, and marks that turn the direction of writing: as escapes. */
export function printable(text: string): string {
  return text.replace(
    /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}
