/** An inspection as text for people. */

import { printable } from '../../bytes/printable.js';
import { StreamErrorCode } from '../codes.js';
import { poolText } from './legacy-tmem.js';
import type { Inspection, Iteration, RecordRow } from './report.js';

/** Rows of a table that people are shown without asking. */
const ITERATIONS_SHOWN = 40;

/** The inspection as lines of plain text, ending in a newline. */
export function formatInspection(inspection: Inspection): string {
  const lines = [
    ...overview(inspection),
    ...section('Pages', pageLines(inspection)),
    ...section(
      'Iterations (guessed: senders go upwards, so a lower frame begins a new one)',
      iterations(inspection),
    ),
    ...section('HVM parameters', params(inspection)),
    ...section('Hypervisor save records', context(inspection)),
    ...section('vcpus', vcpus(inspection)),
    ...section("Regions of QEMU's memory (toolstack chunk)", physmap(inspection)),
    ...section('tmem', tmem(inspection)),
    ...section('Records', records(inspection)),
  ];
  return `${lines.join('\n')}\n`;
}

/** Bytes as people read them: `41.9 MB (41874301)`. */
function bytes(n: number): string {
  const units = ['kB', 'MB', 'GB', 'TB'];
  let unit = -1;
  let value = n;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return unit < 0 ? `${n} bytes` : `${value.toFixed(1)} ${units[unit] as string} (${n} bytes)`;
}

function overview(of: Inspection): string[] {
  const { xl, domain, image, legacy, pv, hvm, tsc, emulator, error } = of;
  const rows: [string, string | undefined][] = [
    ['format', of.format],
    ['size', bytes(of.bytes)],
    ['guest', guest(of)],
    ['name', xl?.name === undefined ? undefined : printable(xl.name)],
    [
      'written by',
      legacy !== undefined
        ? `Xen 4.5 or older, ${legacy.wordSize * 8}-bit toolstack (legacy image)`
        : domain?.converted === true
          ? 'a converter, from a legacy stream'
          : version(domain?.xenVersion),
    ],
    ['image version', image?.version.toString()],
    ['vcpus', vcpuCount(of)],
    ['memory', xl?.maxMemoryKib === undefined ? undefined : `${xl.maxMemoryKib} KiB by xl's configuration`],
    [
      'p2m',
      pv?.maxPfn === undefined
        ? undefined
        : `0x${(pv.maxPfn + 1).toString(16)} pfns in ${pv.p2mFrames} frames`,
    ],
    ['TSC', tsc && `mode ${tsc.mode}, ${tsc.khz} kHz, ${tsc.nsec} ns, incarnation ${tsc.incarnation}`],
    ['policies', of.image && `${of.cpuidLeaves} CPUID leaves, ${of.msrs} MSRs`],
    ['HVM parameters', hvm && String(hvm.params.length)],
    ['QEMU', legacy?.qemu && printable(`${legacy.qemu.signature}, state of ${bytes(legacy.qemu.length)}`)],
    ['compression', compression(of)],
    ['emulator', emulator && `${emulator.name}, state of ${bytes(emulator.contextLength)}`],
    ['checkpoints', of.checkpointCount > 0 ? String(of.checkpointCount) : undefined],
    ['after the end', of.trailingBytes > 0 ? `${of.trailingBytes} bytes` : undefined],
    ['problems', of.problems > 0 ? `${of.problems}, marked ! below (verify tells more)` : undefined],
    [
      error?.code === StreamErrorCode.TRUNCATED ? 'ends early' : 'unreadable',
      error && printable(`${where(error)}${error.message} (at offset ${error.offset})`),
    ],
  ];
  return table(rows.filter((row): row is [string, string] => row[1] !== undefined));
}

function where(error: NonNullable<Inspection['error']>): string {
  const place = [error.record, error.path].filter((part) => part !== undefined).join('.');
  return place === '' ? '' : `${place}: `;
}

function version(xenVersion: string | undefined): string | undefined {
  return xenVersion === undefined ? undefined : `Xen ${xenVersion}`;
}

function compression({ legacy }: Inspection): string | undefined {
  if (legacy?.compression === undefined) return undefined;
  const { pages, chunks, bytes: size, changes, unchanged, whole } = legacy.compression;
  if (chunks === 0 && pages === 0) return 'enabled';
  return `${pages} pages, ${changes} changes (${unchanged} of nothing, ${whole} whole) in ${bytes(size)}`;
}

function guest({ domain, legacy, pv, xl }: Inspection): string | undefined {
  const kind = domain?.guest ?? (legacy && (legacy.guest === 'pv' ? 'x86 PV' : 'x86 HVM'));
  if (kind === undefined) return undefined;
  const width = pv?.guestWidth === undefined ? '' : `, ${pv.guestWidth * 8}-bit`;
  return `${kind}${width}${xl?.type === undefined ? '' : ` (${printable(xl.type)} by xl's configuration)`}`;
}

function vcpuCount({ pv, hvm, xl }: Inspection): string | undefined {
  const online = pv === undefined ? hvm?.vcpus : pv.vcpus.filter(({ basic }) => basic > 0).length;
  if (online === undefined) return undefined;
  return xl?.maxVcpus === undefined ? String(online) : `${online} of ${xl.maxVcpus}`;
}

function pageLines({ pages }: Inspection): string[] {
  if (pages.entries === 0 && pages.verified === 0) return [];
  const rows: [string, string][] = [
    ['entries', String(pages.entries)],
    ...Object.entries(pages.byType).map(([name, n]): [string, string] => [`  ${name}`, String(n)]),
    ['with data', String(pages.data)],
    ['  all zero', String(pages.zero)],
    ...(pages.compressed > 0 ? [['compressed', String(pages.compressed)] as [string, string]] : []),
    ['frames', String(pages.frames)],
    ['  sent again', String(pages.framesSentAgain)],
  ];
  if (pages.highestPfn !== undefined) rows.push(['highest frame', `0x${pages.highestPfn.toString(16)}`]);
  if (pages.untracked > 0) rows.push(['not followed', String(pages.untracked)]);
  if (pages.verified > 0) rows.push(['verified', String(pages.verified)]);
  return table(rows, [1]);
}

function iterations({ iterations: all, iterationsOmitted }: Inspection): string[] {
  if (all.length < 2) return [];
  const shown = all.slice(0, ITERATIONS_SHOWN);
  // A column that v2 streams have no use for.
  const compressed = all.some(({ compressedPages }) => compressedPages > 0);
  const row = (it: Iteration, i: number): string[] =>
    [
      ...[i + 1, it.part, it.records, it.entries, it.dataPages, it.zeroPages],
      ...(compressed ? [it.compressedPages] : []),
      it.offset,
    ].map(String);
  const head = ['', 'part', 'records', 'entries', 'with data', 'all zero', 'offset'];
  if (compressed) head.splice(-1, 0, 'compressed');
  const rest = all.length - shown.length + iterationsOmitted;
  const lines = table([head, ...shown.map(row)], [0, 2, 3, 4, 5, 6, 7]);
  return [...lines, ...(rest > 0 ? [`… ${rest} more`] : [])];
}

function params({ hvm }: Inspection): string[] {
  return table(hvm?.params.map(({ name, value }) => [name, value]) ?? []);
}

function context({ hvm }: Inspection): string[] {
  const rows =
    hvm?.context.map(({ name, records: n, bytes: size }) => [name, String(n), `${size} bytes`]) ?? [];
  return table(rows, [1, 2]);
}

function vcpus({ pv }: Inspection): string[] {
  if (pv === undefined || pv.vcpus.length === 0) return [];
  const rows = pv.vcpus.map((row) => [row.vcpuId, row.basic, row.extended, row.xsave, row.msrs].map(String));
  return table([['vcpu', 'basic', 'extended', 'xsave', 'MSRs'], ...rows], [0, 1, 2, 3, 4]);
}

function physmap({ legacy }: Inspection): string[] {
  const rows = legacy?.physmap.map((of) => [printable(of.name), of.startAddr, of.size, of.physOffset]) ?? [];
  return rows.length === 0 ? [] : table([['name', 'start', 'size', 'offset'], ...rows], [1, 2, 3]);
}

function tmem({ tmem: of }: Inspection): string[] {
  if (of === undefined) return [];
  const persistent = of.pools.filter((pool) => pool.persistent).length;
  const invalidated = of.invalidated > 0 ? `, ${of.invalidated} of them invalidated later` : '';
  return [
    `${of.pools.length} pools, ${persistent} persistent, ${of.pages} pages${invalidated}`,
    ...of.pools.map(poolText),
  ];
}

function records({ records: rows, recordsOmitted }: Inspection): string[] {
  if (rows.length === 0) return [];
  const line = (row: RecordRow): string[] => [
    String(row.offset),
    row.layer,
    row.records > 1 ? `${row.name} × ${row.records}` : row.name,
    String(row.length),
    printable(row.problem === undefined ? row.about : `! ${row.problem}`),
  ];
  const head = ['offset', 'layer', 'record', 'length', ''];
  return [
    ...table([head, ...rows.map(line)], [0, 3]),
    ...(recordsOmitted > 0 ? [`… ${recordsOmitted} more`] : []),
  ];
}

function section(title: string, lines: string[]): string[] {
  return lines.length === 0 ? [] : ['', title, ...lines.map((line) => `  ${line}`)];
}

/** Columns, two blanks apart; those named are aligned to the right. */
function table(rows: readonly (readonly string[])[], right: readonly number[] = []): string[] {
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, i) => (widths[i] = Math.max(widths[i] ?? 0, cell.length)));
  return rows.map((row) =>
    row
      .map((cell, i) => (right.includes(i) ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd(),
  );
}
