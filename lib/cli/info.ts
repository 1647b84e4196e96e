/** `xen-migrate info`: what of Xen is here, and what can be done with it. */
import { printable } from '../bytes/printable.js';
import type { HypervisorVersion } from '../host/xen/native.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { paintFor, speaksUnicode, tableLines, wrapped, type Paint } from './format.js';
import { operands } from './operands.js';
import { indent, printJson, printLines } from './print.js';
import { survey, type Ability, type HelperFacts, type Survey } from './survey.js';

/** Columns of an output that is no terminal. */
const COLUMNS = 120;

const help = `usage: xen-migrate info [options]

Tells what of Xen is on this machine, what is missing and how to get it, and what can be done here with guests of each kind.

  --json                print one JSON document
  --help                print this text

Exit code: 0 if guests can be worked with, 4 if not.
`;

async function run(argv: readonly string[], io: CommandIo, _signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments(argv, {
    allowPositionals: true,
    options: { json: { type: 'boolean' } },
  });
  operands(positionals, []);
  const found = await (io.survey ?? survey)({ env: io.env });
  if (values.json === true) printJson(io.stdout, found);
  else {
    const { stdout, env } = io;
    printLines(stdout, infoLines(found, paintFor(stdout, env), speaksUnicode(env), stdout.columns));
  }
  return found.usable ? ExitCode.OK : ExitCode.NO_HYPERVISOR;
}

/** The survey in words. */
export function infoLines(found: Survey, paint: Paint, unicode: boolean, columns = COLUMNS): string[] {
  const [yes, no] = unicode ? ['✓', '✗'] : ['ok', 'NO'];
  const mark = (ok: boolean): string => (ok ? paint.green(yes) : paint.red(no));
  const { addon, hypervisor, problem, devices, xenstore, helpers, usable } = found;
  const addonFits = addon.xenVersion !== undefined;
  const rows: string[][] = [
    ['addon', mark(addonFits), printable(addonText(found))],
    ['hypervisor', mark(hypervisor !== undefined && problem === undefined), hypervisorText(hypervisor)],
  ];
  if (hypervisor?.capabilities !== undefined)
    rows.push(['', '', paint.dim(printable(hypervisor.capabilities.trim()))]);
  devices.forEach(({ path, use, access }, i) => {
    const state = { usable: '', denied: ': no permission', absent: ': absent' }[access];
    rows.push([
      i === 0 ? 'devices' : '',
      mark(access === 'usable'),
      `${path}${state} ${paint.dim(`(${use})`)}`,
    ]);
  });
  rows.push(['xenstore', mark(xenstore.answers), printable(xenstoreText(xenstore))]);
  for (const kind of ['save', 'convert'] as const) {
    helperTexts(helpers[kind]).forEach((text, i) =>
      rows.push([i === 0 ? `${kind} helper` : '', '', printable(text)]),
    );
  }
  const lines = [
    `${paint.bold('xen-migration')} ${found.version}, Node ${found.node}`,
    '',
    ...indent(tableLines(rows, ['left', 'left', 'left'], 2)),
    '',
  ];
  if (usable) return [...lines, ...abilityLines(found.abilities, paint)];
  const missing = [problem, xenstore.problem].flatMap((p) => (p === undefined ? [] : [p]));
  return [
    ...lines,
    paint.bold('No guest can be worked with here:'),
    ...missing.flatMap(({ code, message }) => {
      const [first = '', ...more] = wrapped(printable(`${message} [${code}]`), columns - 4);
      return [`  ${first}`, ...indent(more, 4)];
    }),
    '',
    'Streams can be verified and inspected, and with --host sim all else be tried on simulated hosts.',
  ];
}

function addonText({ addon, problem }: Survey): string {
  const { path, xenVersion } = addon;
  if (path === undefined && xenVersion === undefined) {
    return problem?.code === 'ERR_XEN_ADDON_LIBRARY' ? 'cannot be loaded' : 'not built';
  }
  return `${path ?? 'loaded'}, ${xenVersion === undefined ? 'built without Xen' : `built with Xen ${xenVersion}`}`;
}

function hypervisorText(hypervisor: HypervisorVersion | undefined): string {
  if (hypervisor === undefined) return 'none that answers';
  const { major, minor, extra, guests } = hypervisor;
  const version = `Xen ${major}.${minor}${extra}`;
  if (guests === undefined) return version;
  const named = (facts: readonly (readonly [name: string, is: boolean])[]): string =>
    facts.flatMap(([name, is]) => (is ? [name] : [])).join(', ') || 'none';
  const kinds = named([
    ['PV', guests.pv],
    ['HVM', guests.hvm],
  ]);
  const paging = named([
    ['hardware-assisted', guests.hap],
    ['shadow', guests.shadow],
  ]);
  return `${version}; guests: ${kinds}; paging: ${paging}`;
}

function xenstoreText({ path, answers }: Survey['xenstore']): string {
  if (path === undefined) return 'absent';
  return answers ? `${path} answers` : `${path} does not answer`;
}

function helperTexts({ variable, stock, own, chosen, chosenIsOwn }: HelperFacts): string[] {
  const texts = stock.length === 0 ? ['xl has none here'] : stock.map((file) => `xl's own: ${file}`);
  texts.push(`ours: ${own ?? 'not built'}`);
  if (chosen === undefined || chosen === '') texts.push(`${variable} is not set: xl uses its own`);
  else if (chosenIsOwn) texts.push(`${variable} is ${chosen}: xl uses ours`);
  else texts.push(`${variable} is ${chosen}: that is not ours`);
  return texts;
}

function abilityLines(abilities: readonly Ability[], paint: Paint): string[] {
  const text = (ability: true | string): string => (ability === true ? 'yes' : ability);
  const head = ['', 'save', 'restore', 'live migration'].map((cell) => paint.dim(cell));
  const rows = abilities.map(({ kind, save, restore, live }) => [
    paint.bold(kind),
    text(save),
    text(restore),
    text(live),
  ]);
  return [
    paint.bold('What can be done here'),
    ...indent(tableLines([head, ...rows], [])),
    paint.dim(
      '  Guests with disks, network or other devices: restore and migration by xl with our save helper.',
    ),
  ];
}

export const info: Command = {
  name: 'info',
  summary: 'tells what of Xen is here, and what can be done with it',
  help,
  run,
};
