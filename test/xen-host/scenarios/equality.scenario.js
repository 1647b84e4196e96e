/**
 * A guest that stands still, saved by the stock helper and by ours: the same stream byte for byte, but for the clocks that
 * Xen reads anew for each save. Then both save it live: the same order of records and of messages.
 */
import fs from 'node:fs';
import { constants } from 'node:os';
import { conversation, offsetOf } from '../libxl/play.js';
import { compare, shapeOf } from '../libxl/records.js';
import { check, library, onStage, same } from '../libxl/stage.js';

/** @typedef {import('../lib/context.js').Context} Context */
/** @typedef {import('../libxl/play.js').Outcome} Outcome */
/** @typedef {import('../libxl/stage.js').Stage} Stage */
/** @typedef {import('../libxl/records.js').Difference} Difference */

/** @param {Stage} stage @param {string} file */
function debiansVerifier({ t }, file) {
  const env = { PYTHONPATH: '/usr/lib/xen-4.17/lib/python' };
  return t.run(['/usr/lib/xen-4.17/bin/verify-stream-v2', '--in', file, '--format', 'libxc'], { env });
}

/** @param {bigint} a @param {bigint} b */
const later = (a, b) => a < b;
/** @param {bigint} word */
const high = (word) => word >> 32n;
/** @param {bigint} word */
const low = (word) => word & 0xffff_ffffn;

/**
 * What Xen reads from a clock at the moment of the save, whoever asks: place, and what the word of the stock helper, which
 * was first, and ours must be like.
 *
 * @type {readonly (readonly [RegExp, (a: bigint, b: bigint) => boolean])[]}
 */
const clocks = [
  // Nanoseconds that the guest has run.
  [/^X86_TSC_INFO\+8$/, later],
  // hvm_hw_cpu.tsc
  [/^HVM_CONTEXT\.CPU\.\d+\+1008$/, later],
  // hvm_hw_hpet: mc64, and the comparators of periodic timers, which follow it.
  [/^HVM_CONTEXT\.HPET\.0\+240$/, later],
  [/^HVM_CONTEXT\.HPET\.0\+(264|288|312)$/, () => true],
  // hvm_hw_pmtimer: tmr_val of 32 bits, which runs over every 20 minutes; behind it the registers.
  [/^HVM_CONTEXT\.PMTIMER\.0\+0$/, (a, b) => high(a) === high(b)],
  // wc_version and wc_sec, wc_nsec: dom0 sets the host's wall clock from time to time, and so that of all its guests.
  [/^SHARED_INFO\+3072$/, (a, b) => low(a) < low(b) && low(b) % 2n === 0n],
  [/^SHARED_INFO\+3080$/, (a, b) => high(a) === high(b)],
];

/** @param {Difference} difference */
function isClock({ where, a, b }) {
  return clocks.some(([place, like]) => place.test(where) && like(BigInt(a), BigInt(b)));
}

/** @param {Outcome} outcome @param {string} what */
export function succeeded(outcome, what) {
  same([outcome.complete, outcome.code, outcome.errors], [{ retval: 0, errnoval: 0 }, 0, []], what);
}

/**
 * What ours said, in the order of the stock helper: ours has a guest suspended first that has no pre-copy.
 *
 * @param {readonly string[]} said
 */
function suspendWhereStockDoes(said) {
  const [suspend = '', ...others] = said;
  check(suspend.startsWith('suspend '), `ours suspends first: ${said.join('; ')}`);
  return others.toSpliced(others.indexOf('progress Domain now suspended'), 0, suspend);
}

/** @param {Stage} stage */
async function standingStill(stage) {
  const { t } = stage;
  await stage.suspend();
  const files = { stock: t.file('stock.libxc'), ours: t.file('ours.libxc') };
  /** @type {Outcome[]} */
  const outcomes = [];
  for (const helper of /** @type {const} */ (['stock', 'ours'])) {
    const fd = fs.openSync(files[helper], 'w+');
    const outcome = await stage.save(fd, { helper });
    succeeded(outcome, helper);
    same(offsetOf(fd), fs.fstatSync(fd).size, `${helper}: the descriptor's offset, from where libxl goes on`);
    fs.closeSync(fd);
    t.measure(`${stage.guest.type} ${helper}, s`, outcome.elapsed / 1000);
    outcomes.push(outcome);
  }
  const { records, pages, differences } = compare(files.stock, files.ours);
  const others = differences.filter((difference) => !isClock(difference));
  // For whoever looks for the reason. The tiny guest's are small enough to be always at hand.
  if (others.length > 0 || stage.guest.type === 'tiny')
    for (const [helper, file] of Object.entries(files)) t.keep(file, `${stage.guest.type}-${helper}.libxc`);
  const clockWords = differences.filter(isClock).map(({ where }) => where);
  same(others, [], 'differences of the streams');
  t.log(`${records} records, ${pages} entries: equal but for ${clockWords.join(', ') || 'nothing'}`);
  const [stock, ours] = outcomes.map(conversation);
  same(suspendWhereStockDoes(ours ?? []), stock, 'what ours said');
  check(!(await stage.oracle.logDirty(stage.domid)), 'log-dirty is on after a save');

  await debiansVerifier(stage, files.ours);
  const { openSource, verify } = await library();
  for (const file of Object.values(files)) {
    const report = await verify(await openSource(file));
    same([report.valid, report.findings], [true, []], `our verifier on ${file}`);
  }
  for (const file of Object.values(files)) fs.rmSync(file);
  await stage.unharmed();
}

/** @param {Stage} stage */
async function live(stage) {
  const { t } = stage;
  /** @type {{ talk: string[], order: string[] }[]} */
  const seen = [];
  for (const helper of /** @type {const} */ (['stock', 'ours'])) {
    const file = t.file(`${helper}.live`);
    let wasOn = false;
    const suspend = async () => {
      wasOn = await stage.oracle.logDirty(stage.domid);
      return stage.suspend();
    };
    const outcome = await stage.saveToFile(file, { helper, live: true, answers: { suspend } });
    succeeded(outcome, `${helper}, live`);
    check(wasOn, `${helper}: log-dirty was not on during a live save`);
    t.measure(`${stage.guest.type} live ${helper}, s`, outcome.elapsed / 1000);
    t.measure(`${stage.guest.type} live ${helper}, passes`, passes(outcome));
    seen.push({ talk: withoutPasses(conversation(outcome)), order: shapeOf(file).order });
    if (helper === 'ours') await debiansVerifier(stage, file);
    fs.rmSync(file);
    await stage.unharmed();
  }
  same(seen[1], seen[0], 'ours, live');
}

/** @param {Outcome} outcome */
function passes(outcome) {
  return new Set(conversation(outcome).filter((line) => line.startsWith('progress Frames'))).size;
}

/**
 * How many passes there are is the guest's doing; that they are counted from 0 without a gap is not. The stock helper does
 * not count the pass after which it stops since few pages were left before it: its last pass then has the same number.
 *
 * @param {readonly string[]} lines
 */
function withoutPasses(lines) {
  let next = 0;
  let suspended = false;
  /** @type {string[]} */
  const kept = [];
  for (const line of lines) {
    suspended ||= line === 'progress Domain now suspended';
    const pass = /^progress Frames iteration (\d+)/.exec(line)?.[1];
    if (pass !== undefined && !(suspended && Number(pass) === next - 1))
      same(Number(pass), next++, 'number of the pass');
    const text = pass === undefined ? line : 'progress Frames iteration';
    if (kept.at(-1) !== text) kept.push(text);
  }
  return kept;
}

/**
 * Xen without shadow paging cannot track a PV guest: EOPNOTSUPP, and EINVAL to whoever turns off what is not on. The stock
 * helper tells libxl the latter.
 */
const refusals = { stock: constants.errno.EINVAL, ours: constants.errno.EOPNOTSUPP };

/** @param {Stage} stage */
async function pvLiveIsRefused(stage) {
  for (const [helper, errnoval] of Object.entries(refusals)) {
    const outcome = await stage.saveToFile(stage.t.file('live'), { helper, live: true });
    same([outcome.complete, outcome.code], [{ retval: -1, errnoval }, 0], `${helper}, live`);
    stage.t.log(`${helper}: ${outcome.errors.join(' | ')}`);
    await stage.unharmed();
  }
}

/** @param {'pv' | 'pvh' | 'hvm' | 'tiny'} type @returns {import('../lib/main.js').Scenario} */
function scenario(type) {
  return {
    name: `stock's stream and ours, ${type}`,
    run: (t) =>
      onStage(t, type, async (stage) => {
        await standingStill(stage);
        await (type === 'pv' ? pvLiveIsRefused(stage) : live(stage));
        await stage.guest.goesOn();
      }),
  };
}

export const scenarios = [scenario('pv'), scenario('pvh'), scenario('tiny'), scenario('hvm')];
