/** Our verdict against that of Xen's verify-stream-v2, on every capture and on streams with seeded damage. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { StreamFormat } from '../../lib/stream/index.js';
import { Verifier, type VerifyReport } from '../../lib/stream/verify/index.js';
import { join, samples, type Piece } from '../unit/verify/streams.js';
import { captures, readCapture, thinned } from './captures.js';
import { examples } from './examples.js';
import { mutations, Random } from './mutate.js';
import { Oracle, oracleOnFile, withoutOracle, type Verdict } from './oracle.js';
import { EXTRA_CHECKS, extraCheckOf, FALSE_ALARMS, readsOtherwise } from './reasons.js';

if (withoutOracle)
  console.warn('skipped: XEN_MIGRATION_NO_ORACLE=1, nothing is compared with verify-stream-v2');

const used = new Map<string, number>();
const use = (reason: string): void => void used.set(reason, (used.get(reason) ?? 0) + 1);

function ours(bytes: Uint8Array, format: StreamFormat): VerifyReport {
  // Kept in full, so that a damaged stream's every error can be looked at.
  const verifier = new Verifier({ format, maxFindings: 10_000 });
  verifier.feed(bytes);
  return verifier.end();
}

/** Holds that both agree, or differ for a reason that is listed. */
function compare(report: VerifyReport, verdict: Verdict, what: string): void {
  const theirs = verdict.exit === 0;
  if (report.valid === theirs) return;
  if (report.valid) {
    const alarm = FALSE_ALARMS.find((candidate) => candidate.applies(verdict, report));
    if (alarm === undefined) expect.fail(`${what}: valid, but verify-stream-v2 says: ${verdict.text}`);
    use(alarm.reason);
    return;
  }
  if (readsOtherwise(report)) return;
  // It has found nothing, so every error of ours must be one that it does not look for.
  for (const finding of report.findings.filter(({ severity }) => severity === 'error')) {
    const check = extraCheckOf(finding);
    if (check === undefined)
      expect.fail(`${what}: verify-stream-v2 sees nothing, we ${JSON.stringify(finding)}`);
    use(check.reason);
  }
}

/** A number of a name, so that each stream has its own damage, the same each time. */
function seedOf(name: string): number {
  let seed = 7;
  for (let i = 0; i < name.length; i++) seed = (Math.imul(seed, 31) + name.charCodeAt(i)) | 0;
  return seed;
}

/** Mutants of each kind for each stream. */
const PER_KIND = 30;

describe.skipIf(withoutOracle)('verify-stream-v2', () => {
  let folder = '';
  let oracle: Oracle;
  beforeAll(() => {
    folder = mkdtempSync(path.join(tmpdir(), 'xen-migration-'));
    oracle = new Oracle();
  });
  afterAll(() => {
    oracle.close();
    rmSync(folder, { recursive: true, force: true });
  });

  describe('captures', () => {
    for (const capture of captures) {
      if (!capture.present)
        console.warn(`skipped: ${capture.name} is not here (XEN_MIGRATION_STREAMS names its folder)`);
      it.skipIf(!capture.present)(capture.name, () => {
        const bytes = readCapture(capture);
        const file = path.join(folder, capture.name);
        writeFileSync(file, bytes);
        const report = ours(bytes, 'xl');
        expect(report.valid).toBe(true);
        compare(report, oracleOnFile(file, 'xl'), capture.name);
        rmSync(file);
      });
    }
  });

  it('asked in one process it says the same as run on a file', async () => {
    for (const { name, format, pieces } of samples()) {
      for (const bytes of [join(pieces), join(pieces).subarray(0, -8)]) {
        const file = path.join(folder, 'stream');
        writeFileSync(file, bytes);
        expect({ name, ...(await oracle.ask(bytes, format)) }).toEqual({
          name,
          ...oracleOnFile(file, format),
        });
      }
    }
  });

  const streams: { name: string; format: StreamFormat; pieces: () => Piece[] }[] = [
    ...samples().map(({ name, format, pieces }) => ({ name, format, pieces: () => pieces })),
    ...captures
      .filter(({ present }) => present)
      .map((capture) => ({
        name: `thinned ${capture.name}`,
        format: 'xl' as const,
        pieces: () => thinned(readCapture(capture)),
      })),
  ];

  describe.each(streams)('$name', ({ name, format, pieces: get }) => {
    let pieces: Piece[] = [];
    beforeAll(() => {
      pieces = get();
    });

    it('undamaged', async () => {
      const report = ours(join(pieces), format);
      expect(report.findings.filter(({ severity }) => severity === 'error')).toEqual([]);
      compare(report, await oracle.ask(join(pieces), format), name);
    });

    it.each(Object.entries(mutations))('%s', async (kind, mutate) => {
      const random = new Random(seedOf(`${name} ${kind}`));
      for (let i = 0; i < PER_KIND; i++) {
        const { what, bytes } = mutate(pieces, random);
        compare(ours(bytes, format), await oracle.ask(bytes, format), `${name}, ${what}`);
      }
    });
  });

  it('every listed reason has an example, and no other', () => {
    const reasons = new Set([...EXTRA_CHECKS, ...FALSE_ALARMS].map(({ reason }) => reason));
    expect(Object.keys(examples).toSorted()).toEqual([...reasons].toSorted());
  });

  it.each(Object.entries(examples))('%s', async (reason, [format, pieces]) => {
    const report = ours(join(pieces), format);
    const verdict = await oracle.ask(join(pieces), format);
    expect(report.valid).not.toBe(verdict.exit === 0);
    used.clear();
    compare(report, verdict, reason);
    expect([...used.keys()]).toContain(reason);
  });
});
