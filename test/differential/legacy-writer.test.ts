/** The writer of legacy images against Xen's own converter: what it takes, and what it makes of it. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { foldV2, type Folded } from '../legacy/fold.js';
import { asLegacy, legacyFromV2, type FromV2, type FromV2Options } from '../legacy/from-v2.js';
import { images, imageNamed } from '../legacy/images.js';
import { convertFile, Converter } from '../legacy/oracle.js';
import { withoutOracle } from './oracle.js';
import * as W from '../legacy/writer.js';
import { join, samples, without } from '../unit/verify/streams.js';
import { captures, readCapture } from './captures.js';

if (withoutOracle)
  console.warn('skipped: XEN_MIGRATION_NO_ORACLE=1, nothing is compared with convert-legacy-stream');

describe('catalogue', () => {
  it('names each image once', () => {
    const names = images.map(({ name }) => name);
    expect(names.filter((name, i) => names.indexOf(name) !== i)).toEqual([]);
  });

  it('has every chunk, every kind of guest, both words, every QEMU record and both headers', () => {
    const small = images.filter((image) => image.pieces !== undefined);
    const ids = new Set<string>();
    for (const image of small) for (const { name } of image.pieces?.() ?? []) ids.add(name);
    const chunks = Object.keys(W.ChunkId).filter((name) => !ids.has(name));
    expect(chunks).toEqual([]);
    const kinds = new Set(images.map(({ guest, width, envelope }) => `${guest} ${width} ${envelope}`));
    expect([...kinds]).toEqual(
      expect.arrayContaining([
        'hvm 64 none',
        'hvm 32 none',
        'pv 64 none',
        'pv 32 none',
        'pv 64 xl',
        'hvm 64 xend',
      ]),
    );
  });
});

describe('deltas', () => {
  const before = W.pageOf(1);
  const changes = {
    'one word': [5],
    'first and last word': [0, 1023],
    'a run longer than a marker can say': Array.from({ length: 300 }, (_, i) => 100 + i),
    'every second word': Array.from({ length: 512 }, (_, i) => 2 * i),
    'all words': Array.from({ length: 1024 }, (_, i) => i),
  };
  it.each(Object.entries(changes))('%s', (_, changed) => {
    const after = W.touched(before, changed);
    expect(after).not.toEqual(before);
    const delta = W.runs(before, after);
    expect(delta.length).toBeLessThanOrEqual(W.DELTA_MAX);
    expect(W.play(before, delta)).toEqual(after);
  });

  it('of a page that has not changed is one byte, a new page comes whole', () => {
    expect(W.runs(before, before)).toEqual(W.unchanged);
    expect(W.play(before, W.unchanged)).toEqual(before);
    expect(W.play(before, W.full(W.pageOf(2)))).toEqual(W.pageOf(2));
  });

  it('has its longest form where all words change', () => {
    expect(W.runs(before, W.touched(before, changes['all words']))).toHaveLength(W.DELTA_MAX);
  });
});

describe.skipIf(withoutOracle)('convert-legacy-stream', () => {
  let folder = '';
  let converter: Converter;
  beforeAll(() => {
    folder = mkdtempSync(path.join(tmpdir(), 'xen-migration-'));
    converter = new Converter();
  });
  afterAll(() => {
    converter.close();
    rmSync(folder, { recursive: true, force: true });
  });

  describe('does with each image of the catalogue what that says', () => {
    for (const image of images) {
      if (!image.present)
        console.warn(`skipped: ${image.name} is not here (XEN_MIGRATION_STREAMS names its folder)`);
      it.skipIf(!image.present)(image.name, async () => {
        const { exit, text } = await converter.convert(image.stream(), image);
        const { upstream } = image;
        const why = upstream.exit === 0 ? '' : (expect.stringContaining(upstream.why) as string);
        expect({ exit, text }).toEqual({ exit: upstream.exit, text: why });
      });
    }
  });

  it('takes each image that another one is said to be like', async () => {
    for (const { name, like, guest } of images) {
      if (like === undefined) continue;
      const options = { guest, width: like.word === 4 ? 32 : 64 } as const;
      expect({ name, ...(await converter.convert(W.legacyImage(like), options)) }).toMatchObject({
        name,
        exit: 0,
      });
    }
  });

  it.each(['hvm 4.5 save, 64-bit toolstack', 'pv32 4.5 save, 32-bit toolstack'])(
    'makes of %s the guest that was described',
    async (name) => {
      const image = imageNamed(name);
      const { output } = await converter.convert(image.stream(), image);
      const found = foldV2(output);
      const ordinary = (pfn: number): string | undefined => found.pages.get(pfn);
      expect(found).toMatchObject({
        guest: image.guest,
        tsc: { mode: 1, nsec: 0x1_2345_6789n, incarnation: 3 },
      });
      expect(ordinary(0)).toMatch(/^type 0, /);
      expect(ordinary(0)).not.toBe(ordinary(1));
      if (image.guest === 'hvm') {
        expect(ordinary(6)).toBe('type 15');
        expect(Object.keys(found.params)).toHaveLength(14);
        expect(found.xenstore).toContainEqual(['physmap/100000000/name', 'rtl8139.rom']);
        expect(found.emulator).toBe(foldV2(W.cat(output)).emulator);
      } else {
        expect(ordinary(12)).toMatch(/^type 11, /);
        expect(Object.keys(found.vcpus[0] ?? {})).toHaveLength(3);
      }
    },
  );

  it('asked in one process it says the same as run on a file', async () => {
    const from = path.join(folder, 'image');
    const to = path.join(folder, 'stream');
    const names = ['hvm 4.5 save, 64-bit toolstack', 'pv64 4.5 save, 32-bit toolstack', 'hvm −21'];
    names.push('pv64 vcpus: xsave left out', 'tmem no pools', 'hvm, last byte missing', 'pv64 blocks: none');
    for (const image of names.map(imageNamed)) {
      writeFileSync(from, image.stream());
      for (const format of ['libxl', 'libxc'] as const) {
        for (const skipQemu of format === 'libxc' ? [false, true] : [false]) {
          rmSync(to, { force: true });
          const options = { ...image, format, skipQemu };
          const expected = convertFile(from, to, options);
          const { read: _, ...got } = await converter.convert(image.stream(), options);
          // The script's own errors are of a module of that name, or of __main__.
          const text = (of: string): string => of.replace(/^(convert_legacy_stream|__main__)\./, '');
          expect({ ...got, text: text(got.text) }).toEqual({ ...expected, text: text(expected.text) });
        }
      }
    }
  });

  async function convertBack(bytes: Uint8Array, options: FromV2Options): Promise<[Folded, Folded, FromV2]> {
    const image = legacyFromV2(bytes, options);
    const whole = foldV2(bytes);
    const bare = whole.emulator === undefined;
    const conversion = await converter.convert(image.bytes, {
      ...image,
      ...(bare ? { format: 'libxc', skipQemu: true } : {}),
    });
    expect(conversion).toMatchObject({ exit: 0, text: '' });
    return [asLegacy(foldV2(conversion.output), image), asLegacy(whole, image), image];
  }

  describe('makes of a legacy image of a v2 stream the same guest', () => {
    const plain = samples().filter(({ name }) => !/Remus|checkpointed/.test(name));
    it.each(plain)('$name', async ({ pieces }) => {
      for (const word of [8, 4] as const) {
        // One vcpu of two has it there: then the image would be one that no reader takes.
        const bytes = join(without(pieces, 'X86_PV_VCPU_XSAVE'));
        const [got, expected] = await convertBack(bytes, { word });
        expect(got).toEqual(expected);
      }
    });

    for (const capture of captures.filter(({ name }) => !name.includes('remus'))) {
      if (!capture.present)
        console.warn(`skipped: ${capture.name} is not here (XEN_MIGRATION_STREAMS names its folder)`);
      it.skipIf(!capture.present)(capture.name, async () => {
        const [got, expected, image] = await convertBack(readCapture(capture), {});
        expect(got.pages.size).toBeGreaterThan(8000);
        expect(got).toEqual(expected);
        expect(image.dropped).toEqual(['X86_CPUID_POLICY', 'X86_MSR_POLICY']);
      });
    }
  });

  it('of a legacy image of a checkpointed stream it takes the first checkpoint', async () => {
    const bytes = readCapture(captures.find(({ name }) => name === 'tinyhvm.remus') as (typeof captures)[0]);
    const image = legacyFromV2(bytes);
    const { exit, output } = await converter.convert(image.bytes, image);
    expect(exit).toBe(0);
    // Eight checkpoints' pages in the image, those of one in what it makes of it.
    expect(output.length).toBeLessThan(image.bytes.length - 7 * 258 * 4096);
    expect(foldV2(output).guest).toBe('hvm');
  });
});
