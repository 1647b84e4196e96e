/** Sockets that this process was started with, by its parent or by systemd. */
import { readFile, readlink } from 'node:fs/promises';
import { TransportError, UsageError } from '../../errors.js';

/** First descriptor that systemd passes. */
const FIRST_FD = 3;
/** More sockets than any unit has. */
const MOST_FDS = 256;

/** Flag of a Unix socket in /proc/net/unix: it listens. */
const UNIX_LISTENS = 0x10000;
/** State of a TCP socket in /proc/net/tcp: it listens. */
const TCP_LISTENS = '0A';

export interface InheritedSocket {
  readonly fd: number;
  /** Its name in the unit, for messages. */
  readonly name: string | undefined;
}

/**
 * The sockets that systemd gave this process, as sd_listen_fds(3) says: LISTEN_PID must be this process, LISTEN_FDS is
 * their number, LISTEN_FDNAMES their names. The variables are taken out of `env`, so that no child takes them for its own.
 *
 * @param name Only sockets of this name (`FileDescriptorName=` of the socket unit)
 * @throws UsageError if there are none, or if the variables contradict each other
 */
export function systemdSockets(
  env: Record<string, string | undefined>,
  name?: string,
  pid: number = process.pid,
): InheritedSocket[] {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES } = env;
  if (LISTEN_FDS === undefined || LISTEN_PID === undefined) {
    throw new UsageError('systemd gave no sockets: LISTEN_FDS and LISTEN_PID are not set');
  }
  if (!/^\d{1,10}$/.test(LISTEN_PID) || Number(LISTEN_PID) !== pid) {
    throw new UsageError(`the sockets of systemd are for process ${LISTEN_PID}, and this is ${pid}`);
  }
  const count = /^\d{1,6}$/.test(LISTEN_FDS) ? Number(LISTEN_FDS) : NaN;
  if (!(count >= 1 && count <= MOST_FDS)) throw new UsageError(`LISTEN_FDS is "${LISTEN_FDS}"`);
  const names = LISTEN_FDNAMES?.split(':');
  if (names !== undefined && names.length !== count) {
    throw new UsageError(`LISTEN_FDNAMES has ${names.length} names for ${count} sockets`);
  }
  for (const variable of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES'])
    Reflect.deleteProperty(env, variable);
  const all = Array.from({ length: count }, (_, i) => ({ fd: FIRST_FD + i, name: names?.[i] }));
  const wanted = name === undefined ? all : all.filter((socket) => socket.name === name);
  if (wanted.length > 0) return wanted;
  throw new UsageError(
    `systemd gave no socket named ${String(name)}; there are ${names?.join(', ') ?? 'none with a name'}`,
  );
}

/** What kind of socket a descriptor is. */
export interface SocketKind {
  readonly family: 'unix' | 'tcp';
  readonly listens: boolean;
}

/**
 * What kind of socket a descriptor is, by the tables of /proc: Node cannot ask, and closes what it cannot listen at.
 *
 * @throws UsageError for what is no open socket; TransportError if it is none of Unix or TCP
 */
export async function socketKind(fd: number): Promise<SocketKind> {
  const link = await readlink(`/proc/self/fd/${fd}`).catch(() => undefined);
  const inode = /^socket:\[(\d+)\]$/.exec(link ?? '')?.[1];
  if (inode === undefined) {
    throw new UsageError(`fd ${fd} is ${link === undefined ? 'not open' : `no socket but ${link}`}`);
  }
  // Num RefCount Protocol Flags Type St Inode Path
  for (const row of await table('unix')) {
    if (row[6] === inode) {
      return { family: 'unix', listens: (parseInt(row[3] ?? '', 16) & UNIX_LISTENS) !== 0 };
    }
  }
  // sl local_address rem_address st tx_queue:rx_queue tr:when retrnsmt uid timeout inode
  for (const row of [...(await table('tcp')), ...(await table('tcp6'))]) {
    if (row[9] === inode) return { family: 'tcp', listens: row[3] === TCP_LISTENS };
  }
  throw new TransportError(`fd ${fd} is neither a Unix nor a TCP socket of this network namespace`);
}

async function table(name: string): Promise<string[][]> {
  const text = await readFile(`/proc/self/net/${name}`, 'latin1').catch(() => '');
  return text
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/));
}
