/** Telling systemd how a service stands: sd_notify(3), by its own command, since Node has no datagram sockets of Unix. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { debug } from '../debug.js';
import type { CommandIo } from './command.js';

const run = promisify(execFile);

/** ms that systemd-notify may take. */
const PATIENCE = 10_000;

/**
 * Tells systemd, if it started us and wants to know. Never rejects: a service that cannot tell goes on, and systemd says
 * itself what it missed.
 *
 * @param state An assignment of sd_notify, for instance `READY=1`
 */
export async function notifySystemd(io: CommandIo, state: string): Promise<void> {
  if (io.env['NOTIFY_SOCKET'] === undefined) return;
  try {
    await run('systemd-notify', [state], { env: { ...io.env }, timeout: PATIENCE });
  } catch (error) {
    debug('systemd-notify: %O', error);
    io.stderr.write('xen-migrate receive: systemd could not be told by systemd-notify\n');
  }
}
