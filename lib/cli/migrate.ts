/** `xen-migrate migrate`: sends a guest to a `xen-migrate receive` elsewhere. */
import { startMigrate } from '../migrate/migrate.js';
import type { MigrateResult } from '../migrate/types.js';
import { UsageError } from '../errors.js';
import { durationOf } from '../quantities.js';
import { addressText, connectTo, parseAddress, requirePrivate } from './address.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { paintFor } from './format.js';
import { takeGuest } from './guests.js';
import { hostOption, openHost } from './hypervisor.js';
import { limitHelp, limitOptions, limitsFrom } from './limits.js';
import { LiveView, noView } from './live.js';
import { operands } from './operands.js';
import { printJson, printLines } from './print.js';
import { transferLines } from './report.js';
import { guestPlan, simGuestHelp, simGuestOptions } from './simulated.js';

const MEMORY = '256M';
const CONNECT_MS = 10_000;

const help = `usage: xen-migrate migrate GUEST ADDRESS [options]

Live-migrates a guest to a receiver: xen-migrate receive on another host or in another process.

  GUEST                 name or domid of the guest
  ADDRESS               tcp://HOST:PORT or unix:///PATH, also written HOST:PORT or /PATH

${simGuestHelp(MEMORY)}
${limitHelp}  --no-live             stop the guest first, then send its memory
  --timeout TIME        give up, guest still here, if it has not arrived within this, for instance 10m
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
      insecure: { type: 'boolean' },
      json: { type: 'boolean' },
    },
  });
  const [operand, addressArgument] = operands(positionals, ['GUEST', 'ADDRESS']);
  const address = parseAddress(addressArgument);
  requirePrivate(address, values.insecure === true);
  const limits = limitsFrom(values);
  const totalMs = values.timeout === undefined ? undefined : durationOf(values.timeout, '--timeout');
  const plan = guestPlan(values, values['sim-guest'] ?? 'pvh', '--sim-guest', MEMORY);
  const json = values.json === true;

  const open = await openHost(values, Object.keys(simGuestOptions), plan.seed, io);
  const { host } = open;
  try {
    const { domid, name, pages, about, notLive } = await takeGuest(open, plan, operand);
    const live = values['no-live'] !== true;
    if (live && notLive !== undefined) {
      throw new UsageError(`${notLive}; with --no-live it stands still while its memory is sent`);
    }
    const peer = await connectTo(address, signal, CONNECT_MS);
    if (!json) printLines(io.stderr, [`sending ${name} to ${addressText(address)}: ${about}`]);
    const view = json ? noView : new LiveView(io, pages);
    const job = startMigrate(host, {
      domid,
      peer,
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
    if (json) printJson(io.stdout, { guest: name, address: addressText(address), ...result });
    else report(io, name, result);
    return ExitCode.OK;
  } finally {
    await host.close();
  }
}

function report(io: CommandIo, name: string, result: MigrateResult): void {
  const paint = paintFor(io.stdout, io.env);
  const { peerDomid, peerState } = result;
  printLines(io.stdout, transferLines(`${name} is ${peerState} there as domain ${peerDomid}`, result, paint));
}

export const migrate: Command = {
  name: 'migrate',
  summary: 'live-migrates a guest to a receiver',
  help,
  run,
};
