/** `xen-migrate migrate`: sends a guest to a `xen-migrate receive` elsewhere. */
import { startMigrate } from '../migrate/migrate.js';
import type { MigrateResult } from '../migrate/types.js';
import { UsageError } from '../errors.js';
import { durationOf } from '../quantities.js';
import { isNoteId } from '../toolstack/notes.js';
import {
  connectPeer,
  parsePeerAddress,
  peerAddressText,
  REMOTE_COMMAND,
  requirePrivate,
  type ConnectOptions,
} from '../transport/peer/index.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { paintFor } from './format.js';
import { takeGuest } from './guests.js';
import { hostOption, openHost } from './hypervisor.js';
import { limitHelp, limitOptions, limitsFrom } from './limits.js';
import { LiveView, noView } from './live.js';
import { operands } from './operands.js';
import { compressionFrom, tlsFrom, tlsHelp, tlsOptions } from './peer.js';
import { printJson, printLines } from './print.js';
import { transferLines } from './report.js';
import { guestPlan, simGuestHelp, simGuestOptions } from './simulated.js';
import { choiceOf } from './values.js';

const MEMORY = '256M';
const PROTOCOLS = ['auto', 'xen-migration', 'xl'] as const;

const help = `usage: xen-migrate migrate GUEST ADDRESS [options]

Live-migrates a guest to a receiver: xen-migrate receive on another host or in another process, or xl migrate-receive.

  GUEST                 name or domid of the guest
  ADDRESS               ssh://[USER@]HOST[:PORT], which runs xl migrate-receive there; tls://HOST:PORT,
                        tcp://HOST:PORT or unix:///PATH, also written HOST:PORT or /PATH; exec:COMMAND, of the shell

${simGuestHelp(MEMORY)}
${limitHelp}  --no-live             stop the guest first, then send its memory
  --timeout TIME        give up, guest still here, if it has not arrived within this, for instance 10m
  --id UUID             the migration's id: a destination where it is still open refuses it, so that a try again
                        makes no second guest

  --ssh COMMAND         the ssh to use, with its options (default: $XEN_MIGRATE_SSH, or ssh)
  --remote-command CMD  what ssh runs there (default "xl migrate-receive", with -p if the guest is paused;
                        "xen-migrate receive --stdio")
  --peer-leaves-paused  the receiver is xl migrate-receive -p, which leaves the guest paused: needed for a paused
                        guest if --remote-command or exec: starts an xl
  --protocol PROTOCOL   auto (default): what the receiver greets with; xen-migration; xl
  --compress NAMES      offer to compress: zstd, brotli or gzip, best first: NAME[,NAME]
${tlsHelp}  --tls-name NAME       the name that the receiver's certificate must have (default: HOST)
  --insecure            allow plain TCP beyond this machine: memory travels unencrypted
  --json                print one JSON document instead of the report
  --help                print this text

If anything fails before the other side has been told to run the guest, it goes on here. Exit code 3 says that
the connection was lost in the one moment in which nobody can tell which side has it.
`;

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments(argv, {
    allowPositionals: true,
    options: {
      ...hostOption,
      ...simGuestOptions,
      ...limitOptions,
      'no-live': { type: 'boolean' },
      timeout: { type: 'string' },
      id: { type: 'string' },
      ...tlsOptions,
      'tls-name': { type: 'string' },
      ssh: { type: 'string' },
      'remote-command': { type: 'string' },
      'peer-leaves-paused': { type: 'boolean' },
      protocol: { type: 'string' },
      compress: { type: 'string' },
      insecure: { type: 'boolean' },
      json: { type: 'boolean' },
    },
  });
  const [operand, addressArgument] = operands(positionals, ['GUEST', 'ADDRESS']);
  const address = parsePeerAddress(addressArgument);
  if (values.id !== undefined && !isNoteId(values.id))
    throw new UsageError('--id must be a UUID in lower case');
  requirePrivate(address, values.insecure);
  const where = peerAddressText(address);
  const asked: ConnectOptions = {
    tls: tlsFrom(values, { serverName: values['tls-name'] }, address),
    insecure: values.insecure,
    sshCommand: values.ssh ?? io.env['XEN_MIGRATE_SSH'],
    remoteCommand: values['remote-command'],
  };
  const protocol = choiceOf(values.protocol ?? 'auto', '--protocol', PROTOCOLS);
  const compression = compressionFrom(values.compress);
  const limits = limitsFrom(values);
  const totalMs = values.timeout === undefined ? undefined : durationOf(values.timeout, '--timeout');
  const plan = guestPlan(values, values['sim-guest'] ?? 'pvh', '--sim-guest', MEMORY);
  const json = values.json === true;

  const open = await openHost(values, Object.keys(simGuestOptions), plan.seed, io);
  const { host } = open;
  try {
    const { domid, name, pages, about, paused, notLive } = await takeGuest(open, plan, operand);
    const live = values['no-live'] !== true;
    if (live && notLive !== undefined) {
      throw new UsageError(`${notLive}; with --no-live it stands still while its memory is sent`);
    }
    // Where the command is ours to choose, a paused guest stays so.
    const oursToChoose = address.kind === 'ssh' && asked.remoteCommand === undefined;
    const peerLeavesPaused = values['peer-leaves-paused'] === true || (oursToChoose && paused);
    const connect =
      oursToChoose && peerLeavesPaused ? { ...asked, remoteCommand: `${REMOTE_COMMAND} -p` } : asked;
    const peer = await connectPeer(address, { ...connect, signal });
    if (!json) printLines(io.stderr, [`sending ${name} to ${where}: ${about}`]);
    const view = json ? noView : new LiveView(io, pages);
    const job = startMigrate(host, {
      domid,
      id: values.id,
      peer,
      protocol,
      peerLeavesPaused,
      compression,
      // An inherited socket is there once.
      ...(address.kind === 'fd'
        ? {}
        : {
            reconnect: (s: AbortSignal) => connectPeer(address, { ...connect, signal: s }),
            reconnectTo: where,
          }),
      signal,
      ...limits,
      live,
      timeouts: { totalMs },
      onProgress: view.show,
    });
    let result: MigrateResult;
    try {
      result = await job.result;
    } finally {
      view.clear();
    }
    if (json) printJson(io.stdout, { guest: name, address: where, ...result });
    else report(io, name, result);
    return ExitCode.OK;
  } finally {
    await host.close();
  }
}

function report(io: CommandIo, name: string, result: MigrateResult): void {
  const paint = paintFor(io.stdout, io.env);
  const { peerDomid, peerState } = result;
  const as = peerDomid === undefined ? '' : ` as domain ${peerDomid}`;
  printLines(io.stdout, transferLines(`${name} is ${peerState} there${as}`, result, paint));
}

export const migrate: Command = {
  name: 'migrate',
  summary: 'live-migrates a guest to a receiver',
  help,
  run,
};
