/** `xen-migrate save`: a guest into a file. */
import type { Host } from '../host/host.js';
import { startSave } from '../save/save.js';
import type { SaveFormat, SaveOptions, SaveResult } from '../save/types.js';
import { UsageError } from '../errors.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { writeWhole } from './files.js';
import { paintFor } from './format.js';
import { takeGuest } from './guests.js';
import { hostOption, openHost } from './hypervisor.js';
import { limitHelp, limitOptions, limitsFrom } from './limits.js';
import { LiveView, noView } from './live.js';
import { operands } from './operands.js';
import { printJson, printLines } from './print.js';
import { transferLines } from './report.js';
import { guestPlan, simGuestHelp, simGuestOptions } from './simulated.js';
import { choiceOf } from './values.js';

const MEMORY = '256M';
export const FORMATS: readonly SaveFormat[] = ['xl', 'libxl', 'libxc'];

const help = `usage: xen-migrate save GUEST FILE|- [options]

Saves a guest to a file in the form of xl save, or to the standard output. The file is written beside its place and
renamed when it is complete: a save that fails leaves the guest running, no partial file, and an older file as it was.
The guest is gone afterwards, unless -c or -p says otherwise.

  GUEST                 name or domid of the guest
  -c, --checkpoint      let the guest go on when it is saved
  -p, --pause           keep the guest, paused, when it is saved
  --format FORMAT       xl (default), libxl (without xl's header) or libxc (memory and state alone)
  --no-live             stop the guest first, then save its memory

${simGuestHelp(MEMORY)}
${limitHelp}  --json                print one JSON document instead of the report
  --help                print this text
`;

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments(argv, {
    allowPositionals: true,
    options: {
      ...hostOption,
      ...simGuestOptions,
      ...limitOptions,
      checkpoint: { type: 'boolean', short: 'c' },
      pause: { type: 'boolean', short: 'p' },
      format: { type: 'string' },
      'no-live': { type: 'boolean' },
      json: { type: 'boolean' },
    },
  });
  const [operand, file] = operands(positionals, ['GUEST', 'FILE']);
  const format = choiceOf(values.format ?? 'xl', '--format', FORMATS);
  const limits = limitsFrom(values);
  const plan = guestPlan(values, values['sim-guest'] ?? 'pvh', '--sim-guest', MEMORY);
  if (values.checkpoint === true && values.pause === true) {
    throw new UsageError('--checkpoint lets the guest go on and --pause does not: give one of them');
  }
  const afterwards = values.checkpoint === true ? 'resume' : values.pause === true ? 'suspended' : 'destroy';
  const json = values.json === true;
  const open = await openHost(values, Object.keys(simGuestOptions), plan.seed, io);
  try {
    const [guest, result] = await writeWhole(file, io, async (to) => {
      const guest = await takeGuest(open, plan, operand);
      const wanted = values['no-live'] !== true;
      if (wanted && guest.notLive !== undefined) {
        io.stderr.write(`${guest.notLive}: it is stopped first\n`);
      }
      const view = json ? noView : new LiveView(io, guest.pages);
      const result = await saveGuest(open.host, to, view, {
        domid: guest.domid,
        format,
        live: wanted && guest.notLive === undefined,
        afterwards,
        signal,
        ...limits,
      });
      return [guest, result];
    });
    if (afterwards === 'suspended') await leavePaused(open.host, guest.domid);
    reportSave(io, guest.name, file, result, json);
    return ExitCode.OK;
  } finally {
    await open.host.close();
  }
}

async function saveGuest(
  host: Host,
  to: Parameters<typeof startSave>[1]['to'],
  view: Pick<LiveView, 'show' | 'clear'>,
  options: SaveOptions,
): Promise<SaveResult> {
  const job = startSave(host, { ...options, to, onProgress: view.show });
  try {
    return await job.result;
  } finally {
    view.clear();
  }
}

/** As `xl save -p`: the guest has come back from its suspend, and stands still until somebody unpauses it. */
async function leavePaused(host: Host, domid: number): Promise<void> {
  await host.toolstack.pause(domid);
  await host.toolstack.resume(domid);
}

/** Tells of a save. Where the stream went to the standard output, the report goes to the other one. */
function reportSave(io: CommandIo, name: string, file: string, result: SaveResult, json: boolean): void {
  const output = file === '-' ? io.stderr : io.stdout;
  if (json) {
    printJson(output, { guest: name, file, ...result });
    return;
  }
  const paint = paintFor(output, io.env);
  const where = file === '-' ? 'the standard output' : file;
  printLines(output, transferLines(`saved ${name} to ${where}`, result, paint));
}

export const save: Command = {
  name: 'save',
  summary: 'saves a guest to a file in the form of xl save',
  help,
  run,
};
