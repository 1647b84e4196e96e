/** What the system's errors mean to whoever gave the address. */

const texts: Readonly<Record<string, string>> = {
  EADDRINUSE: 'the address is in use',
  EADDRNOTAVAIL: 'this machine does not have the address',
  EACCES: 'permission denied',
  EPERM: 'permission denied',
  ECONNREFUSED: 'nobody listens there',
  ENOENT: 'there is no such socket',
  ENOTFOUND: 'the name is unknown',
  EAI_AGAIN: 'no name server answers',
  EHOSTUNREACH: 'the host cannot be reached',
  ENETUNREACH: 'the network cannot be reached',
  ENOTSOCK: 'it is no socket',
};

/** A few words for an error of connecting or listening. */
export function socketErrorText(error: unknown): string {
  // A name with several addresses fails with all of their errors in one.
  const first: unknown = error instanceof AggregateError ? error.errors[0] : error;
  const { code, message } = first as NodeJS.ErrnoException;
  return texts[code ?? ''] ?? message;
}
