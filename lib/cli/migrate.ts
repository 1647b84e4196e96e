/** `xen-migrate migrate`: sends a guest to a `xen-migrate receive` elsewhere. */
import { startMigrate } from '../migrate/migrate.js';
import type { MigrateResult } from '../migrate/types.js';
import { addressText, connectTo, parseAddress, requirePrivate } from './address.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { paintFor } from './format.js';
import {
  createGuest,
  guestHelp,
  guestOptions,
  guestPlan,
  hostOption,
  openHost,
  planText,
} from './hypervisor.js';
import { limitHelp, limitOptions, limitsFrom } from './limits.js';
import { LiveView, noView } from './live.js';
import { operands } from './operands.js';
import { printJson, printLines } from './print.js';
import { transferLines } from './report.js';
import { durationOf } from './values.js';

const MEMORY = '256M';
const CONNECT_MS = 10_000;

const help = `usage: xen-migrate migrate GUEST ADDRESS [options]

Live-migrates a guest to a receiver: xen-migrate receive on another host or in another process.

  GUEST                 name of the guest
  ADDRESS               tcp://HOST:PORT or unix:///PATH, also written HOST:PORT or /PATH

  --host sim            work on a simulated host, with a guest made for the occasion:
  --sim-guest KIND      pvh, hvm, pv or pv32 (default pvh)
${guestHelp(MEMORY)}
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
      'sim-guest': { type: 'string' },
      ...guestOptions,
      ...limitOptions,
      'no-live': { type: 'boolean' },
      timeout: { type: 'string' },
      insecure: { type: 'boolean' },
      json: { type: 'boolean' },
    },
  });
  const [name, addressArgument] = operands(positionals, ['GUEST', 'ADDRESS']);
  const address = parseAddress(addressArgument);
  requirePrivate(address, values.insecure === true);
  const limits = limitsFrom(values);
  const totalMs = values.timeout === undefined ? undefined : durationOf(values.timeout, '--timeout');
  const plan = guestPlan(values, values['sim-guest'] ?? 'pvh', '--sim-guest', MEMORY);
  const json = values.json === true;

  const host = openHost(values.host, plan.seed);
  try {
    const guest = await createGuest(host, plan, name);
    const peer = await connectTo(address, signal, CONNECT_MS);
    if (!json) printLines(io.stderr, [`sending ${name} to ${addressText(address)}: ${planText(plan)}`]);
    const view = json ? noView : new LiveView(io, plan.memory / 4096);
    const job = startMigrate(host, {
      domid: guest.domid,
      peer,
      signal,
      ...limits,
      live: values['no-live'] !== true,
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
