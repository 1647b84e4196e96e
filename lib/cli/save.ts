/** `xen-migrate save`: a guest into a file. */
import { startSave } from '../save/save.js';
import type { SaveFormat, SaveResult } from '../save/types.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { writeWhole } from './files.js';
import { paintFor } from './format.js';
import { createGuest, guestHelp, guestOptions, guestPlan, hostOption, openHost } from './hypervisor.js';
import { limitHelp, limitOptions, limitsFrom } from './limits.js';
import { LiveView, noView } from './live.js';
import { operands } from './operands.js';
import { printJson, printLines } from './print.js';
import { transferLines } from './report.js';
import { choiceOf } from './values.js';

const MEMORY = '256M';
export const FORMATS: readonly SaveFormat[] = ['xl', 'libxl', 'libxc'];

const help = `usage: xen-migrate save GUEST FILE|- [options]

Saves a guest to a file in the form of xl save, or to the standard output. The file is written beside its place and
renamed when it is complete: a save that fails leaves the guest running, no partial file, and an older file as it was.

  --format FORMAT       xl (default), libxl (without xl's header) or libxc (memory and state alone)
  --no-live             stop the guest first, then save its memory

  --host sim            work on a simulated host, with a guest made for the occasion:
  --sim-guest KIND      pvh, hvm, pv or pv32 (default pvh)
${guestHelp(MEMORY)}
${limitHelp}  --json                print one JSON document instead of the report
  --help                print this text
`;

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments(argv, {
    allowPositionals: true,
    options: {
      ...hostOption,
      'sim-guest': { type: 'string' },
      ...guestOptions,
      ...limitOptions,
      format: { type: 'string' },
      'no-live': { type: 'boolean' },
      json: { type: 'boolean' },
    },
  });
  const [name, file] = operands(positionals, ['GUEST', 'FILE']);
  const format = choiceOf(values.format ?? 'xl', '--format', FORMATS);
  const limits = limitsFrom(values);
  const plan = guestPlan(values, values['sim-guest'] ?? 'pvh', '--sim-guest', MEMORY);
  const json = values.json === true;
  const host = openHost(values.host, plan.seed);
  try {
    const result = await writeWhole(file, io, async (to) => {
      const guest = await createGuest(host, plan, name);
      const view = json ? noView : new LiveView(io, plan.memory / 4096);
      const live = values['no-live'] !== true;
      const job = startSave(host, {
        domid: guest.domid,
        to,
        format,
        live,
        signal,
        ...limits,
        onProgress: view.show,
      });
      try {
        return await job.result;
      } finally {
        view.clear();
      }
    });
    reportSave(io, name, file, result, json);
    return ExitCode.OK;
  } finally {
    await host.close();
  }
}

/** Tells of a save. Where the stream went to the standard output, the report goes to the other one. */
export function reportSave(
  io: CommandIo,
  name: string,
  file: string,
  result: SaveResult,
  json: boolean,
): void {
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
