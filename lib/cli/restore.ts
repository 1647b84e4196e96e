/** `xen-migrate restore`: a guest out of a file. */
import { readFile } from 'node:fs/promises';
import { printable } from '../bytes/printable.js';
import { TransportError } from '../errors.js';
import { startRestore } from '../restore/restore.js';
import type { RestoreFormat, RestoreResult } from '../restore/types.js';
import { startSave } from '../save/save.js';
import type { SaveResult } from '../save/types.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { writeWhole } from './files.js';
import { bytesText, countText, paintFor, speaksUnicode, timeText } from './format.js';
import { arrivedGuest, type Arrived } from './guests.js';
import { hostOption, openHost, type OpenHost } from './hypervisor.js';
import { LiveView, noView } from './live.js';
import { operands } from './operands.js';
import { indent, printJson, printLines } from './print.js';
import { proofFacts, proved, proveGuest, type Proof } from './proof.js';
import { factLines, type Fact } from './report.js';
import { FORMATS } from './save.js';
import { choiceOf } from './values.js';

/** What only a simulated host can do: its guests can be looked into, and saved again before they ran. */
const SIM_ONLY = ['check', 'save-to', 'save-format'];

const help = `usage: xen-migrate restore FILE|- [options]

Restores a guest from a file of xl save, or from the standard input. Compressed files are to be unpacked first:
gunzip -c guest.gz | xen-migrate restore - ...

  --format FORMAT       xl, libxl, libxc or auto (default)
  --config FILE         the guest's configuration (libxl_domain_config as JSON) instead of the one in xl's header;
                        needed for libxl and libxc streams
  -p, --paused          do not let the guest run
  --failover            a checkpointed (Remus) stream that is cut off: go on from its last complete checkpoint. Only
                        where the guest does not run at its source any more

  --host HOST           xen: this machine (default); sim: a simulated host. There, guests of a real Xen are held, but do
                        not run, and these are possible:
  --check               let a guest of the simulator check its own memory
  --save-to FILE|-      save the guest out of the host again, by itself or in another form
  --save-format FORMAT  xl (default), libxl or libxc
  --json                print one JSON document instead of the report
  --help                print this text

A restore that fails leaves no domain behind.
`;

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments(argv, {
    allowPositionals: true,
    options: {
      ...hostOption,
      format: { type: 'string' },
      config: { type: 'string' },
      paused: { type: 'boolean', short: 'p' },
      failover: { type: 'boolean' },
      check: { type: 'boolean' },
      'save-to': { type: 'string' },
      'save-format': { type: 'string' },
      json: { type: 'boolean' },
    },
  });
  const [file] = operands(positionals, ['FILE']);
  const format: RestoreFormat = choiceOf(values.format ?? 'auto', '--format', ['auto', ...FORMATS] as const);
  const saveFormat = choiceOf(values['save-format'] ?? 'xl', '--save-format', FORMATS);
  const saveTo = values['save-to'];
  const json = values.json === true;
  const paused = values.paused === true;
  const open = await openHost(values, SIM_ONLY, 3, io);
  const { host } = open;
  try {
    const config = values.config === undefined ? undefined : await readConfig(values.config);
    const view = json ? noView : new LiveView(io);
    let restored: RestoreResult;
    try {
      restored = await startRestore(host, {
        from: file === '-' ? io.stdin : file,
        format,
        config,
        signal,
        onTruncatedCheckpoint: values.failover === true ? 'failover' : 'error',
        // What is to be saved again must not run in between, but for its way back from one suspend into the next.
        run: saveTo === undefined && !paused,
        onProgress: view.show,
      }).result;
    } finally {
      view.clear();
    }
    const { domid } = restored;
    const arrived = await arrivedGuest(open, domid, restored.guestType);
    const proof =
      open.kind === 'sim' && values.check === true
        ? await proveGuest(open.host, domid, false, signal)
        : undefined;
    let saved: SaveResult | undefined;
    if (saveTo !== undefined) {
      // A restored PV guest cannot be saved before its kernel has come back and told where its p2m is on this host.
      await host.toolstack.unpause(domid);
      await host.toolstack.suspend(domid, { signal, live: false });
      saved = await writeWhole(
        saveTo,
        io,
        (to) => startSave(host, { domid, to, format: saveFormat, live: false, signal }).result,
      );
    }
    const facts = checkFacts(proof);
    report(io, open, { file, saveTo, paused, arrived, restored, saved, proof, facts, json });
    return proved(facts) ? ExitCode.OK : ExitCode.FAILED;
  } finally {
    await host.close();
  }
}

async function readConfig(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    throw new TransportError(`reading ${file}: ${(cause as Error).message}`, { cause });
  }
}

function checkFacts(proof: Proof | undefined): Fact[] {
  if (proof === undefined) return [];
  if (proof.checkable) return proofFacts(proof, false);
  return [{ ok: false, text: 'it has no program of the simulator that could check it' }];
}

interface Outcome {
  readonly file: string;
  readonly saveTo: string | undefined;
  readonly paused: boolean;
  readonly arrived: Arrived;
  readonly restored: RestoreResult;
  readonly saved: SaveResult | undefined;
  readonly proof: Proof | undefined;
  readonly facts: readonly Fact[];
  readonly json: boolean;
}

function report(io: CommandIo, open: OpenHost, outcome: Outcome): void {
  const { file, saveTo, paused, arrived, restored, saved, proof, facts, json } = outcome;
  const output = saveTo === '-' ? io.stderr : io.stdout;
  const { config: _config, ...rest } = restored;
  if (json) {
    printJson(output, { ok: proved(facts), file, ...arrived, restored: rest, saved, proof });
    return;
  }
  const paint = paintFor(output, io.env);
  const { domid, pages, bytes, elapsed, checkpoints } = restored;
  const { kind, name } = arrived;
  const from = file === '-' ? 'the standard input' : file;
  const lines = [
    `restored ${kind} guest ${name === undefined ? '' : `${printable(name)} `}from ${from} as domain ${domid}: ` +
      `${countText(pages)} pages, ${bytesText(bytes)} in ${timeText(elapsed)}`,
  ];
  if (checkpoints > 0) lines.push(`  its state is that of checkpoint ${checkpoints}`);
  const { cpuid, msr } = restored.missing;
  if (cpuid || msr) {
    const what = [cpuid ? 'CPUID' : '', msr ? 'MSR' : ''].filter((s) => s !== '').join(' and ');
    lines.push(`  the stream has no ${what} policy: the host's own was taken`);
  }
  lines.push(...indent(factLines(facts, paint, speaksUnicode(io.env))));
  if (saved !== undefined) {
    const where = saveTo === '-' ? 'the standard output' : (saveTo ?? '');
    lines.push(
      `saved it again to ${where}: ${countText(saved.pages)} pages, ${bytesText(saved.bytes)} in ${timeText(saved.elapsed)}`,
    );
  } else if (open.kind === 'xen') {
    lines.push(paused ? '  it is paused' : '  it runs');
  } else if (open.host.guest(domid).stats().running) {
    lines.push('  it ran until this command ended, with its simulated host');
  }
  printLines(output, lines);
}

export const restore: Command = {
  name: 'restore',
  summary: 'restores a guest from a file',
  help,
  run,
};
