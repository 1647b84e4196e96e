/** `xen-migrate recover`: puts right what dead processes left of saves and migrations. */
import { printable } from '../bytes/printable.js';
import { errorMessage, UsageError } from '../errors.js';
import { recover as recoverHost, type RecoveryFinding, type RecoveryOutcome } from '../migrate/recover.js';
import { durationOf } from '../quantities.js';
import { isNoteId } from '../toolstack/notes.js';
import { connectPeer, parsePeerAddress } from '../transport/peer/index.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { paintFor } from './format.js';
import { hostOption, openHost } from './hypervisor.js';
import { operands } from './operands.js';
import { tlsFrom, tlsHelp, tlsOptions } from './peer.js';
import { printJson, printLines } from './print.js';

/** What answers at a host that was reached by ssh. */
const REMOTE_COMMAND = 'xen-migrate receive --stdio';

const help = `usage: xen-migrate recover [options]

Finds what killed processes left behind on this machine, and puts it right: guests that a save or migration left with
log-dirty on or suspended go on, half-built domains are destroyed, a guest that was handed over to this machine runs. If
a guest was handed over from here and nobody heard whether it arrived, its destination is asked. It may be called at any
time, also again; what a living process is at is left alone.

  --dry-run             look only, and say what would be done
  --ask ADDRESS         where to ask, instead of the address that the migration went to
  --timeout TIME        how long each destination is asked (default: 30s)
  --resume ID           the guest of this migration certainly is not at its destination: it goes on here
  --destroy ID          the guest of this migration is at its destination: its copy here is destroyed
  --host HOST           xen: this machine (default); sim: a simulated host

  --ssh COMMAND         the ssh to use, with its options (default: $XEN_MIGRATE_SSH, or ssh)
  --remote-command CMD  what ssh runs there (default "${REMOTE_COMMAND}")
${tlsHelp}  --tls-name NAME       the name that the other side's certificate must have (default: HOST)
  --insecure            allow plain TCP beyond this machine
  --json                print one JSON document
  --help                print this text

Exit code 3: of at least one guest nobody can say which side has it; its copy here stays suspended.
`;

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments(argv, {
    allowPositionals: true,
    options: {
      ...hostOption,
      ...tlsOptions,
      'dry-run': { type: 'boolean' },
      ask: { type: 'string' },
      timeout: { type: 'string' },
      resume: { type: 'string' },
      destroy: { type: 'string' },
      'tls-name': { type: 'string' },
      ssh: { type: 'string' },
      'remote-command': { type: 'string' },
      insecure: { type: 'boolean' },
      json: { type: 'boolean' },
    },
  });
  operands(positionals, []);
  for (const option of ['resume', 'destroy'] as const) {
    const id = values[option];
    if (id !== undefined && !isNoteId(id))
      throw new UsageError(`--${option}: "${id}" is no id of a migration`);
  }
  if (values.ask !== undefined) parsePeerAddress(values.ask);
  const open = await openHost(values, [], 1, io);
  try {
    const findings = await recoverHost(open.host, {
      signal,
      dryRun: values['dry-run'] === true,
      resolveMs: values.timeout === undefined ? undefined : durationOf(values.timeout, '--timeout'),
      reconnect: async (noted, _id, s) => {
        const to = values.ask ?? noted;
        if (to === undefined) throw new UsageError('it is not known where the guest went: say --ask ADDRESS');
        const address = parsePeerAddress(to);
        return connectPeer(address, {
          signal: s,
          tls: tlsFrom(values, { serverName: values['tls-name'] }, address),
          insecure: values.insecure,
          sshCommand: values.ssh ?? io.env['XEN_MIGRATE_SSH'],
          remoteCommand: values['remote-command'] ?? REMOTE_COMMAND,
        });
      },
      decide: ({ id }) =>
        id === undefined
          ? undefined
          : id === values.resume
            ? 'source'
            : id === values.destroy
              ? 'destination'
              : undefined,
    });
    if (values.json === true) printJson(io.stdout, findings.map(plain));
    else report(io, findings);
    return exitCodeOf(findings);
  } finally {
    await open.host.close();
  }
}

/** Errors as their text. */
function plain({ error, ...finding }: RecoveryFinding): object {
  return error === undefined ? finding : { ...finding, error: errorMessage(error) };
}

const BAD: readonly RecoveryOutcome[] = ['unresolved', 'failed'];

function report(io: CommandIo, findings: readonly RecoveryFinding[]): void {
  const paint = paintFor(io.stdout, io.env);
  if (findings.length === 0) printLines(io.stdout, ['nothing was left behind']);
  printLines(
    io.stdout,
    findings.map(({ outcome, message }) => {
      const label = outcome.padEnd(10);
      return `${BAD.includes(outcome) ? paint.bold(label) : label}  ${printable(message)}`;
    }),
  );
}

function exitCodeOf(findings: readonly RecoveryFinding[]): number {
  if (findings.some(({ outcome }) => outcome === 'unresolved')) return ExitCode.GUEST_UNKNOWN;
  return findings.some(({ outcome }) => outcome === 'failed') ? ExitCode.FAILED : ExitCode.OK;
}

export const recover: Command = {
  name: 'recover',
  summary: 'puts right what killed saves and migrations left behind',
  help,
  run,
};
