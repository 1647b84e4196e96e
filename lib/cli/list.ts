/** `xen-migrate list`: the domains of a host. */
import { printable } from '../bytes/printable.js';
import { ShutdownReason, type DomainInfo } from '../host/host.js';
import type { GuestKind } from '../host/simulated/guest.js';
import type { SimulatedHost } from '../host/simulated/host.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { paintFor, tableLines, type Align } from './format.js';
import { hostOption, openHost, type OpenHost } from './hypervisor.js';
import { operands } from './operands.js';
import { printJson, printLines } from './print.js';
import { kindOf } from './xen-side.js';

const help = `usage: xen-migrate list [options]

Lists the domains of this machine, the control domain among them.

  --host HOST           xen: this machine (default); sim: a simulated host, with a guest of each kind to look at
  --json                print one JSON document
  --help                print this text

Mem is in MiB, Time is processor time in seconds. State has a letter for each that is true:
  r running   b blocked, it waits for something   p paused   s shut down or suspended   c crashed   d dying
`;

/** A line of the list. */
interface Row {
  /** Undefined if the toolstack has no name for it. */
  readonly name: string | undefined;
  readonly domid: number;
  /** Bytes. */
  readonly memory: number;
  readonly vcpus: number;
  readonly state: string;
  /** Processor time, ms; undefined if the host does not tell. */
  readonly cpuMs: number | undefined;
  readonly kind: string;
}

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const { values, positionals } = parseArguments(argv, {
    allowPositionals: true,
    options: { ...hostOption, json: { type: 'boolean' } },
  });
  operands(positionals, []);
  const open = await openHost(values, [], 1, io);
  try {
    if (open.kind === 'sim') await populate(open.host);
    signal.throwIfAborted();
    const rows = await rowsOf(open);
    if (values.json === true) printJson(io.stdout, rows);
    else printLines(io.stdout, tableOf(rows, paintFor(io.stdout, io.env).dim));
    return ExitCode.OK;
  } finally {
    await open.host.close();
  }
}

/** A simulated host lives as long as its command: without these, there would be nothing to see. */
async function populate(host: SimulatedHost): Promise<void> {
  const kinds: readonly GuestKind[] = ['pv', 'pv32', 'pvh', 'hvm'];
  for (const kind of kinds) await host.createGuest({ kind, memory: 16 << 20, name: `demo-${kind}` });
}

async function rowsOf(open: OpenHost): Promise<Row[]> {
  const domains = await open.host.listDomains();
  if (open.kind === 'sim') {
    const { host } = open;
    return domains.map((info) => {
      const { kind } = host.guest(info.domid);
      return rowOf(info, `demo-${kind}`, kind);
    });
  }
  const labels = await open.xen.labels();
  return domains.map((info) => {
    const label = labels.get(info.domid);
    return rowOf(info, label?.name, kindOf(info, label));
  });
}

function rowOf(info: DomainInfo, name: string | undefined, kind: string): Row {
  const { domid, totPages, maxVcpuId, use } = info;
  return {
    name,
    domid,
    memory: totPages * 4096,
    vcpus: use?.onlineVcpus ?? maxVcpuId + 1,
    state: stateLetters(info),
    cpuMs: use?.cpuMs,
    kind,
  };
}

/** The letters of `xl list`, in their places. */
export function stateLetters(info: DomainInfo): string {
  const { use, paused, shutdown, shutdownReason, dying } = info;
  const facts: readonly (readonly [letter: string, is: boolean])[] = [
    // A host that does not tell whether a vcpu runs this very moment: one that may run does.
    ['r', use?.running ?? !(paused || shutdown || dying)],
    ['b', use?.blocked ?? false],
    ['p', paused],
    ['s', shutdown],
    ['c', shutdown && shutdownReason === ShutdownReason.CRASH],
    ['d', dying],
  ];
  return facts.map(([letter, is]) => (is ? letter : '-')).join('');
}

function tableOf(rows: readonly Row[], dim: (text: string) => string): string[] {
  const head = ['Name', 'ID', 'Mem', 'VCPUs', 'State', 'Time', 'Kind'].map(dim);
  const align: readonly Align[] = ['left', 'right', 'right', 'right', 'left', 'right', 'left'];
  const cells = rows.map(({ name, domid, memory, vcpus, state, cpuMs, kind }) => [
    name === undefined ? '-' : printable(name),
    String(domid),
    String(Math.round(memory / 2 ** 20)),
    String(vcpus),
    state,
    cpuMs === undefined ? '-' : (cpuMs / 1000).toFixed(1),
    kind,
  ]);
  return tableLines([head, ...cells], align);
}

export const list: Command = {
  name: 'list',
  summary: 'lists the domains of this machine',
  help,
  run,
};
