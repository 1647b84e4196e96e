/** Verification of legacy images: what is found in which, and where. */

import { describe, expect, it } from 'vitest';
import { setU32, setU64 } from '../../../lib/bytes/le.js';
import { Verifier, type VerifyReport } from '../../../lib/stream/index.js';
import { Random } from '../../differential/mutate.js';
import { imageNamed, images } from '../../legacy/images.js';
import { mutations } from '../../legacy/mutate.js';
import * as W from '../../legacy/writer.js';
import { hvmContext } from './streams.js';

function check(bytes: Uint8Array, piece = Infinity): VerifyReport {
  const verifier = new Verifier();
  for (let at = 0; at < bytes.length; at += piece) verifier.feed(bytes.subarray(at, at + piece));
  return verifier.end();
}

/** Severity, code, place. */
function brief(report: VerifyReport): string[] {
  return report.findings.map(({ severity, code, record, path }) => {
    const place = [record, path].filter((part) => part !== undefined).join('.');
    return `${severity === 'error' ? 'E' : 'W'} ${code.replace('ERR_XEN_STREAM_', '')} ${place}`.trimEnd();
  });
}

const blocks = [W.block.vcpu(), W.block.extv(), W.block.xcnt(96)];
const pages = W.pages(W.ram(0, 8));
const state = [W.vcpuInfo(), W.toolstack(), W.lastCheckpoint];
const hvm: W.ImageSpec = { guest: 'hvm', body: [W.tsc(), pages, ...state] };
const pv: W.ImageSpec = { guest: 'pv64', blocks, body: [W.tsc(), pages, ...state] };

const withBody = (spec: W.ImageSpec, ...body: readonly W.Chunk[]): W.ImageSpec => ({ ...spec, body });

/** Changes a piece of an image. */
function poked(spec: W.ImageSpec, name: string, change: (bytes: Uint8Array) => void): Uint8Array {
  const pieces = W.legacyPieces(spec).map((piece) => {
    if (piece.name !== name) return piece;
    const bytes = Uint8Array.from(piece.bytes);
    change(bytes);
    return { ...piece, bytes };
  });
  return W.joinPieces(pieces);
}

function offsetOf(spec: W.ImageSpec, name: string, more = 0): number {
  let at = 0;
  for (const piece of W.legacyPieces(spec)) {
    if (piece.name === name) return at + more;
    at += piece.bytes.length;
  }
  throw new Error(`no piece "${name}"`);
}

describe('good images', () => {
  const good = images.filter(({ name, present }) => {
    return (
      present &&
      /4\.[015]( save| live)?, |^xl |^xend |^hvm (−21|debug|SMP)|^pv.. (SMP|vcpu 1|full|debug|blocks: \w+, )/.test(
        name,
      )
    );
  });

  it('there are some of every kind', () => {
    expect(good.length).toBeGreaterThan(45);
    expect(new Set(good.map(({ envelope }) => envelope))).toEqual(new Set(['none', 'xl', 'xend']));
  });

  it.each(
    good.map(({ name }) => name).filter((name) => !/padded|unknown|another|twice|no vcpu|length/.test(name)),
  )('%s', (name) => {
    const { guest, width, bytes, envelope } = imageNamed(name);
    const report = check(bytes());
    expect(report.findings).toEqual([]);
    expect(report).toMatchObject({
      valid: true,
      format: envelope === 'none' ? 'legacy' : envelope,
      bytes: bytes().length,
      summary: {
        guest: guest === 'pv' ? 'x86 PV' : 'x86 HVM',
        wordSize: width / 8,
        complete: true,
        checkpoints: 0,
        converted: false,
        imageVersion: undefined,
      },
    });
  });

  it('the summary', () => {
    const spec = withBody(
      { ...pv, vcpus: [0, 2], p2mSize: 600 },
      ...[W.tsc(), pages, W.verifyMode, W.pages(W.ram(2), W.holes(9)), ...state],
    );
    expect(check(W.legacyImage(spec)).summary).toEqual({
      ...check(new Uint8Array(0)).summary,
      guest: 'x86 PV',
      wordSize: 8,
      guestWidth: 8,
      maxPfn: 599,
      vcpus: 2,
      records: {
        TSC_INFO: 1,
        'page batch': 2,
        ENABLE_VERIFY_MODE: 1,
        VCPU_INFO: 1,
        TOOLSTACK: 1,
        LAST_CHECKPOINT: 1,
        'unmapped pfns': 1,
        'vcpu context': 2,
        'vcpu extended context': 2,
        'vcpu xsave': 2,
        'shared info': 1,
      },
      pageEntries: 10,
      dataPages: 9,
      verifyPass: true,
      complete: true,
    });
  });
});

describe('findings', () => {
  const context = (...parts: Uint8Array[]): W.ImageSpec => ({ ...hvm, tail: { context: W.cat(...parts) } });
  const qemu = (blob: Uint8Array): W.ImageSpec => {
    return { ...hvm, tail: { qemu: { signature: 'DeviceModelRecord0002', blob } } };
  };
  // The frames that the tests' vcpus name.
  const basic = 'vcpu 0: basic';
  const rounds = (...later: readonly W.Chunk[][]): W.ImageSpec => ({
    guest: 'hvm',
    rounds: [
      { body: [W.tsc(), pages, W.vcpuInfo(), W.enableCompression] },
      ...later.map((body) => ({ body: [...body, W.vcpuInfo()] })),
    ],
  });
  const TRUNCATED = 'W TRUNCATED';

  const cases: Readonly<Record<string, readonly [W.ImageSpec | Uint8Array, readonly string[]]>> = {
    // Order
    'a batch after the state': [
      withBody(hvm, W.tsc(), pages, W.vcpuInfo(), W.pages(W.ram(9))),
      ['W ORDER page batch'],
    ],
    'TSC_INFO after the state': [
      withBody(hvm, pages, W.param('HVM_VIRIDIAN', 1), W.tsc()),
      ['W ORDER TSC_INFO'],
    ],
    'ENABLE_VERIFY_MODE after the state': [
      withBody(hvm, W.tsc(), pages, W.toolstack(), W.verifyMode),
      ['W ORDER ENABLE_VERIFY_MODE'],
    ],
    'state at any place among itself': [
      withBody(
        hvm,
        W.tsc(),
        pages,
        W.lastCheckpoint,
        W.toolstack(),
        W.param('HVM_VIRIDIAN', 1),
        W.vcpuInfo(),
      ),
      [],
    ],
    'TMEM after a batch': [withBody(hvm, W.tsc(), pages, W.tmem(), ...state), ['W ORDER TMEM']],
    'TMEM after TSC_INFO': [withBody(hvm, W.tsc(), W.tmem(), pages, ...state), ['W ORDER TMEM']],
    'TMEM_EXTRA after the state': [
      withBody(hvm, W.tmem(), W.tsc(), pages, W.vcpuInfo(), W.tmemExtra()),
      ['W ORDER TMEM_EXTRA'],
    ],
    // What is there twice, or not at all
    'TSC_INFO twice': [withBody(hvm, W.tsc(), W.tsc(), pages, ...state), ['W DUPLICATE TSC_INFO']],
    'TOOLSTACK twice': [
      withBody(hvm, W.tsc(), pages, W.toolstack(), W.toolstack()),
      ['W DUPLICATE TOOLSTACK'],
    ],
    'a parameter twice': [
      withBody(hvm, W.tsc(), pages, W.param('HVM_VIRIDIAN', 1), W.param('HVM_VIRIDIAN', 1)),
      ['W DUPLICATE HVM_VIRIDIAN'],
    ],
    'VCPU_INFO twice': [withBody(hvm, W.tsc(), pages, W.vcpuInfo(), W.vcpuInfo()), ['E DUPLICATE VCPU_INFO']],
    'no TSC_INFO': [withBody(hvm, pages, ...state), ['W MISSING END']],
    'no pages': [withBody(hvm, W.tsc(), ...state), ['W MISSING END']],
    'no VCPU_INFO, PV': [withBody(pv, W.tsc(), pages, W.lastCheckpoint), ['W MISSING END']],
    'no VCPU_INFO, HVM': [withBody(hvm, W.tsc(), pages, W.lastCheckpoint), []],
    'no vcpu online': [{ ...pv, vcpus: [] }, ['E MISSING shared info']],
    // Pages
    'a page table of an HVM guest': [
      withBody(hvm, W.tsc(), W.pages(W.ram(1), W.page(2, 'L1')), W.pages(W.page(3, 'L4_PIN')), ...state),
      ['W PAGE_TYPE page batch.pfns[1].type'],
    ],
    'a pfn twice in a batch': [
      withBody(hvm, W.tsc(), W.pages(W.ram(1), W.ram(1)), ...state),
      ['E DUPLICATE page batch.pfns[1]'],
    ],
    'a pfn twice in two batches': [withBody(hvm, W.tsc(), pages, pages, ...state), []],
    'a pfn beyond p2m_size': [
      withBody(hvm, W.tsc(), W.pages(W.ram(64)), ...state),
      ['E FIELD page batch.pfns[0]'],
    ],
    // PV
    'a p2m frame that was never sent': [
      { ...pv, p2mSize: 2000, frames: [1, 9, 8, 2] },
      ['E MISSING p2m frame list.frames[1]'],
    ],
    'a p2m frame that was sent as a hole': [
      withBody({ ...pv, frames: [9] }, W.tsc(), pages, W.pages(W.holes(9)), ...state),
      ['E MISSING p2m frame list.frames[0]'],
    ],
    'a p2m frame beyond p2m_size': [{ ...pv, frames: [64] }, ['E FIELD p2m frame list.frames[0]']],
    'start_info that was never sent': [
      poked(pv, basic, (b) => setU64(b, 616, 9n)),
      ['E MISSING vcpu context.user_regs.rdx'],
    ],
    'page tables beyond p2m_size': [
      poked(pv, basic, (b) => setU64(b, 4984 + 24, 64n << 12n)),
      ['E FIELD vcpu context.ctrlreg[3]'],
    ],
    'extended context of another vcpu': [
      poked(pv, 'vcpu 0: extended', (b) => setU32(b, 0, 1)),
      ['W FIELD vcpu extended context.vcpu'],
    ],
    'an xsave area that is not there': [
      { ...pv, vcpus: [0, 1], tail: { withoutXsave: [0] } },
      ['E FIELD vcpu xsave.size'],
    ],
    'the last xsave area is not there': [
      { ...pv, vcpus: [0, 1], tail: { withoutXsave: [1] } },
      ['E FIELD vcpu xsave.size'],
    ],
    'regions of a QEMU': [
      withBody(pv, W.tsc(), pages, W.vcpuInfo(), W.toolstack([{ offset: 1, start: 2, size: 3, name: 'x' }])),
      ['W FIELD TOOLSTACK.count'],
    ],
    'a parameter of a PV guest': [
      withBody(pv, W.tsc(), pages, W.param('HVM_VIRIDIAN', 1), ...state),
      ['E TYPE HVM_VIRIDIAN'],
    ],
    // HVM
    'no context': [context(), ['E LENGTH HVM context.length']],
    'a context without header': [context(hvmContext.subarray(1)), ['W FIELD HVM context.blob']],
    'a context that is cut off': [context(hvmContext.subarray(0, -1)), ['W FIELD HVM context.blob']],
    'no xenstore ring': [{ ...hvm, tail: { magic: [1, 2, 0] } }, ['W FIELD magic pfns.store_pfn']],
    'no state of QEMU': [qemu(new Uint8Array(0)), ['W FIELD QEMU record.state']],
    'another device model': [qemu(W.text('QEMU state')), ['W FIELD QEMU record.state']],
    'ioreq server without pages': [
      withBody(hvm, W.tsc(), pages, W.param('HVM_IOREQ_SERVER_PFN', 5), ...state),
      ['W FIELD END'],
    ],
    'ACPI ioports of no firmware': [
      withBody(hvm, W.tsc(), pages, W.param('HVM_ACPI_IOPORTS_LOCATION', 2), ...state),
      ['W FIELD HVM_ACPI_IOPORTS_LOCATION.value'],
    ],
    'toolstack version': [
      withBody(hvm, W.tsc(), pages, W.toolstack([], { version: 2 })),
      ['E VERSION TOOLSTACK.version'],
    ],
    'toolstack without a word': [withBody(hvm, W.tsc(), pages, W.toolstackBytes(new Uint8Array(0))), []],
    // Remus
    'checkpoints as they should be': [
      rounds([W.pfns(W.ram(0, 2)), W.compressed(W.unchanged, W.unchanged)]),
      [TRUNCATED],
    ],
    'a change too few': [
      rounds([W.pfns(W.ram(0, 2)), W.compressed(W.unchanged)]),
      ['E FIELD END', TRUNCATED],
    ],
    'no changes': [rounds([W.pfns(W.ram(0, 2))]), ['E FIELD END', TRUNCATED]],
    'a change too many': [
      rounds([W.pfns(W.ram(0)), W.compressed(W.unchanged, W.unchanged)]),
      ['E FIELD COMPRESSED_DATA', TRUNCATED],
    ],
    'changes before their batch': [
      rounds([W.compressed(W.unchanged), W.pfns(W.ram(0))]),
      ['E FIELD COMPRESSED_DATA', TRUNCATED],
    ],
    'a change over two chunks': [
      rounds([
        W.pfns(W.ram(0)),
        ...[0, 1000].map((from) =>
          W.compressed(W.full(W.pageOf(1)).subarray(from, from === 0 ? 1000 : 4097)),
        ),
      ]),
      [TRUNCATED],
    ],
    'a change that is cut off': [
      rounds([W.pfns(W.ram(0)), W.compressed(W.full(W.pageOf(1)).subarray(0, 4096))]),
      ['E LENGTH END', TRUNCATED],
    ],
    'a run of no words': [
      rounds([W.pfns(W.ram(0)), W.compressed(W.rawRuns(1, 0, 1022))]),
      ['E FIELD COMPRESSED_DATA.runs', TRUNCATED],
    ],
    'faults of one checkpoint are not those of the next': [
      rounds([W.pfns(W.ram(0, 2)), W.compressed(W.unchanged)], [W.pfns(W.ram(1)), W.compressed(W.unchanged)]),
      ['E FIELD END', TRUNCATED],
    ],
    'compression enabled twice': [rounds([W.enableCompression]), ['W ORDER ENABLE_COMPRESSION', TRUNCATED]],
    'compressed data that was not announced': [
      withBody(hvm, W.tsc(), pages, W.compressed(W.unchanged), ...state),
      ['E ORDER COMPRESSED_DATA'],
    ],
    'a last checkpoint': [rounds([W.pfns(W.holes(1)), W.lastCheckpoint]), []],
    // tmem
    'ephemeral pools': [
      withBody(hvm, W.tmem({ pools: [W.ephemeral(0), W.ephemeral(5)] }), W.tsc(), pages, ...state),
      ['W TMEM TMEM'],
    ],
    'persistent pools': [
      withBody(
        hvm,
        W.tmem({ pools: [W.persistent(0, [W.tmemPage(1, 2)]), { ...W.persistent(1, []), declared: 0 }] }),
        ...[W.tsc(), pages, ...state],
      ),
      ['W TMEM TMEM.pools', 'W TMEM TMEM.pools'],
    ],
    'pages that the writer passed over': [
      withBody(
        hvm,
        W.tmem({ pools: [{ ...W.persistent(0, [W.tmemPage(1, 2)]), declared: 4, terminated: false }] }),
        ...[W.tsc(), pages, ...state],
      ),
      ['W TMEM TMEM.pools', 'W MISSING TMEM.oid'],
    ],
    'TMEM twice': [
      withBody(hvm, W.tmem(), W.tmem(), W.tsc(), pages, ...state),
      ['W ORDER TMEM', 'E DUPLICATE TMEM'],
    ],
    'TMEM_EXTRA alone, twice': [
      withBody(hvm, W.tsc(), pages, W.tmemExtra(), W.tmemExtra(), ...state),
      ['W ORDER TMEM_EXTRA', 'W ORDER TMEM_EXTRA', 'W DUPLICATE TMEM_EXTRA'],
    ],
    'TMEM_EXTRA of a pool that there is not': [
      withBody(
        hvm,
        W.tmem({ pools: [W.ephemeral(1)] }),
        ...[W.tsc(), pages, W.tmemExtra([1, 2].map((pool) => ({ pool, object: [1n, 2n, 3n], index: 4 })))],
        ...state,
      ),
      ['W TMEM TMEM', 'E FIELD TMEM_EXTRA.pool_id'],
    ],
    'a tmem section that cannot be read': [
      withBody(hvm, W.tmem({ version: 2 }), W.tsc(), pages, ...state),
      ['E VERSION TMEM.version'],
    ],
    // Files
    'xl, another kind of guest': [W.cat(W.xlHeader(W.xlJson('pv')), W.legacyImage(hvm)), ['E CONFIG header']],
    'xl, its configuration as text': [W.cat(W.xlHeader(W.xlText('pv')), W.legacyImage(hvm)), []],
    "xl's hand-over": [
      W.cat(W.legacyImage(hvm), W.text('domain is yours, you are cleared to unpause\0')),
      ['W TRAILING'],
    ],
    "xl's hand-over after an image of 4.0": [
      W.cat(
        W.legacyImage(withBody(pv, W.tsc(), pages, W.vcpuInfo())),
        W.text('domain is yours, you are cleared to unpause\0'),
      ),
      ['W TRAILING'],
    ],
    'bytes after the end': [W.cat(W.legacyImage(hvm), new Uint8Array(3)), ['W TRAILING']],
    'lost framing': [withBody(hvm, W.tsc(), pages, W.rawChunk(-30)), ['E TYPE unknown (-30).id']],
    'lost framing after a whole checkpoint': [
      W.cat(W.legacyImage(withBody(hvm, W.tsc(), pages, W.vcpuInfo())), W.w32(-30)),
      ['E TYPE unknown (-30).id'],
    ],
    'no end': [W.legacyImage({ ...hvm, tail: 'none' }), ['E TRUNCATED magic pfns']],
  };

  it.each(Object.entries(cases))('%s', (_what, [of, findings]) => {
    const bytes = of instanceof Uint8Array ? of : W.legacyImage(of);
    const report = check(bytes);
    expect(brief(report)).toEqual(findings);
    expect(report.valid).toBe(!findings.some((finding) => finding.startsWith('E')));
    for (const { offset, message } of report.findings) {
      expect(offset).toBeLessThanOrEqual(bytes.length);
      expect(message).not.toMatch(/[\n\r]|undefined|NaN/);
    }
    expect(check(bytes, 1)).toEqual(report);
    expect(check(bytes, 1000)).toEqual(report);
  });

  it('where they are', () => {
    const found = (spec: W.ImageSpec | Uint8Array): number[] =>
      check(spec instanceof Uint8Array ? spec : W.legacyImage(spec)).findings.map(({ offset }) => offset);
    const frames = { ...pv, p2mSize: 2000, frames: [1, 9, 8, 2] };
    expect(found(frames)).toEqual([offsetOf(frames, 'p2m frames', 8)]);
    expect(found(poked(pv, basic, (b) => setU64(b, 616, 9n)))).toEqual([offsetOf(pv, basic, 616)]);
    const table = withBody(hvm, W.tsc(), W.pages(W.ram(1), W.page(2, 'L1')), ...state);
    expect(found(table)).toEqual([offsetOf(table, 'batch of 2', 12)]);
    const cut = context(hvmContext.subarray(1));
    expect(found(cut)).toEqual([offsetOf(cut, 'HVM context')]);
    const blank = { ...hvm, tail: { magic: [1, 2, 0] as const } };
    expect(found(blank)).toEqual([offsetOf(blank, 'magic pfns', 16)]);
    const old = withBody(pv, W.tsc(), pages, W.vcpuInfo());
    const after = W.cat(W.legacyImage(old), W.text('domain is yours, you are cleared to unpause\0'));
    expect(found(after)).toEqual([after.length - 44]);
    expect(check(after)).toMatchObject({
      findings: [
        {
          message: expect.stringContaining("44 bytes after the end of the stream: xl's hand-over") as string,
        },
      ],
      summary: { trailingBytes: 44 },
    });
  });

  it('zeros behind an image of Xen 4.0', () => {
    const image = W.legacyImage(withBody(pv, W.tsc(), pages, W.vcpuInfo()));
    for (const n of [4, 20, 16 << 10]) {
      const bytes = W.cat(image, new Uint8Array(n));
      const report = check(bytes);
      const message = `${n} bytes after the end of the stream`;
      expect(report).toMatchObject({
        valid: true,
        warnings: 1,
        findings: [{ offset: image.length, message }],
      });
      expect(report.summary).toMatchObject({ trailingBytes: n, checkpoints: 0, complete: true });
    }
  });

  it('counts of persistent pools', () => {
    const list = [W.tmemPage(1, 2), W.tmemPage(1, 3)];
    const spec = withBody(hvm, W.tmem({ pools: [W.persistent(3, list)] }), W.tsc(), pages, ...state);
    expect(check(W.legacyImage(spec)).findings[0]?.message).toMatch(
      /^pool 3 is persistent, 2 pages of at most 3: /,
    );
  });
});

describe('Remus', () => {
  it.each(
    images
      .filter(({ name, present, like }) => present && / Remus /.test(name) && like !== undefined)
      .map(({ name }) => name),
  )('%s: valid', (name) => {
    const report = check(imageNamed(name).bytes());
    expect(report.valid).toBe(true);
    expect(brief(report).map((finding) => finding.split(' ').slice(0, 2).join(' '))).toEqual(
      name.endsWith('−9') ? [] : ['W TRUNCATED'],
    );
  });

  it('what a receiver drops is told', () => {
    const { stream } = imageNamed('pv64 Remus plain, in a page');
    const { findings, summary } = check(stream());
    expect(findings[0]?.message).toBe(
      'ends after a complete checkpoint: a receiver fails over to the last one, and drops the 300 bytes after it',
    );
    expect(summary).toMatchObject({ checkpoints: 1, complete: false });
  });

  it('cut before its first checkpoint is complete', () => {
    const bytes = imageNamed('pv64 Remus plain, 64-bit toolstack').stream();
    expect(check(bytes.subarray(0, 40_000))).toMatchObject({ valid: false, summary: { checkpoints: 0 } });
  });
});

describe('whatever the bytes', () => {
  it('page contents may be passed over', () => {
    for (const [name, contents] of [
      ['hvm 4.5 live, 64-bit toolstack', 18],
      ['pv64 Remus compressed, 32-bit toolstack', 10],
    ] as const) {
      const bytes = imageNamed(name).bytes();
      const verifier = new Verifier();
      let passed = 0;
      for (let at = 0; at < bytes.length;) {
        const n = verifier.unneeded;
        if (n > 0) {
          verifier.pass(n);
          at += n;
          passed += n;
          continue;
        }
        const piece = bytes.subarray(at, at + Math.min(verifier.want, 100));
        verifier.feed(piece);
        at += piece.length;
      }
      expect(verifier.end()).toEqual(check(bytes));
      // All contents; a compressed checkpoint has none.
      expect(passed).toBe(4096 * contents);
    }
  });

  it.each([
    'hvm 4.5 live, 64-bit toolstack',
    'pv32 4.5 save, 32-bit toolstack',
    'hvm Remus compressed, 64-bit toolstack',
    'tmem persistent, mixed',
  ])('damage makes nothing throw: %s', (name) => {
    const list = imageNamed(name).pieces?.() ?? [];
    const random = new Random(31);
    let invalid = 0;
    for (let i = 0; i < 200; i++) {
      const { what, bytes } = random.pick(Object.values(mutations))(list, random);
      const report = check(bytes);
      if (!report.valid) invalid++;
      expect(report.errors > 0, what).toBe(!report.valid);
      expect(report.bytes).toBeLessThanOrEqual(bytes.length);
    }
    expect(invalid).toBeGreaterThan(30);
    expect(invalid).toBeLessThan(200);
  });
});
