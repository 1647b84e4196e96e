/** Our conversion of legacy images against Xen's: on the catalogue, on real images, on images with seeded damage. */

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { convert } from '../../lib/convert/convert.js';
import type { ConvertOutput, ConvertResult } from '../../lib/convert/types.js';
import { StreamFormatError } from '../../lib/errors.js';
import { MemorySink } from '../../lib/transport/memory.js';
import { foldV2, type Folded } from '../legacy/fold.js';
import { asLegacy, legacyFromV2 } from '../legacy/from-v2.js';
import { images, imageNamed, xlHeaderSize, type Example } from '../legacy/images.js';
import { mutations } from '../legacy/mutate.js';
import { Converter, type Conversion } from '../legacy/oracle.js';
import { foldLegacy } from '../legacy/reference.js';
import * as W from '../legacy/writer.js';
import { captures, readCapture } from './captures.js';
import { acceptanceOf, ACCEPTANCES, DIFFERENCES, refusalOf, REFUSALS, type Both } from './convert-reasons.js';
import { Random } from './mutate.js';
import { withoutOracle } from './oracle.js';

if (withoutOracle)
  console.warn('skipped: XEN_MIGRATION_NO_ORACLE=1, nothing is compared with convert-legacy-stream');

const FORMATS = ['libxl', 'libxc'] as const;

/** What is asked of both: the formats, and libxc without QEMU's record. */
const WAYS = [
  { name: 'libxl', format: 'libxl', skipQemu: false },
  { name: 'libxc', format: 'libxc', skipQemu: false },
  { name: 'libxc without QEMU', format: 'libxc', skipQemu: true },
] as const;

/** Images of the catalogue that upstream takes and we refuse. */
const REFUSED: readonly string[] = [
  ...['hvm pfn beyond p2m_size', 'hvm unknown page type', 'hvm bits above a pfn', 'hvm p2m_size 0'],
  ...['hvm p2m_size of 35 bits', 'hvm ENABLE_VERIFY_MODE before the pages', 'hvm empty context'],
  ...['pv64 blocks: xcnt without room', 'pv32 blocks: xcnt without room', 'pv64 blocks: vcpu twice'],
  ...[
    'pv64 vcpus: bits beyond',
    'pv64 vcpus: negative',
    'pv64 vcpus: chunk missing',
    'pv64 vcpus: chunk twice',
  ],
  ...['pv64 p2m frame beyond p2m_size', 'hvm Remus plain, damaged', 'pv64 Remus plain, damaged'],
  ...['pv32 Remus plain, damaged', 'pv64 unmapped beyond p2m_size', 'hvm toolstack, NUL in a name'],
];

/** Images that are like no plain one, that upstream refuses and we take. */
const TAKEN: readonly string[] = [
  ...['hvm toolstack, not UTF-8', 'tmem persistent, empty', 'xen-4.5.5-pv64-remus-compressed.xlremus'],
];

/** Mutants of each kind for each image. */
const PER_KIND = 12;

type Ours =
  | { readonly output: Uint8Array; readonly result: ConvertResult; readonly error?: undefined }
  | { readonly error: StreamFormatError; readonly output?: undefined };

/** Converts. Anything but a StreamFormatError is a failure. */
async function ours(
  bytes: Uint8Array,
  { guest, width }: Pick<Example, 'guest' | 'width'>,
  output: ConvertOutput,
  skipQemu = false,
): Promise<Ours> {
  const to = new MemorySink();
  try {
    const result = await convert({ from: bytes, to, guest, width, output, skipQemu, tmem: 'drop-ephemeral' });
    return { output: to.bytes, result };
  } catch (error) {
    if (error instanceof StreamFormatError) return { error };
    throw error;
  }
}

async function converted(
  bytes: Uint8Array,
  of: Pick<Example, 'guest' | 'width'>,
  output: ConvertOutput,
): Promise<Uint8Array> {
  const got = await ours(bytes, of, output);
  if (got.error !== undefined) throw got.error;
  return got.output;
}

const wordOf = ({ width }: Pick<Example, 'width'>): W.Word => (width === 64 ? 8 : 4);

/** What the image is in the plain reading of it. */
function reference(bytes: Uint8Array, image: Pick<Example, 'guest' | 'width'>): Folded {
  const { rounds: _, ...folded } = foldLegacy(bytes, image.guest, wordOf(image));
  return folded;
}

/** A libxc stream has no device model. */
function inFormat(folded: Folded, format: 'libxl' | 'libxc'): Folded {
  return format === 'libxl' ? folded : { ...folded, emulator: undefined, xenstore: [] };
}

function seedOf(name: string): number {
  let seed = 7;
  for (let i = 0; i < name.length; i++) seed = (Math.imul(seed, 31) + name.charCodeAt(i)) | 0;
  return seed;
}

const used = new Set<string>();

/** Holds what each did with an image against the lists. Returns why they differ, if they do. */
function compare(
  what: string,
  image: Pick<Example, 'guest'>,
  format: 'libxl' | 'libxc',
  theirs: Conversion,
  got: Ours,
): string | undefined {
  const use = (reason: string): string => {
    used.add(reason);
    return reason;
  };
  if (got.error !== undefined) {
    if (theirs.exit !== 0) return undefined;
    const refusal = refusalOf(got.error, { ...theirs, guest: image.guest, format });
    if (refusal === undefined)
      expect.fail(`${what}: upstream takes it, we say ${got.error.code} ${got.error.message}`);
    return use(refusal.reason);
  }
  if (theirs.exit !== 0) {
    const acceptance = acceptanceOf(theirs.text);
    if (acceptance === undefined) expect.fail(`${what}: we take it, upstream says ${theirs.text}`);
    return use(acceptance.reason);
  }
  if (theirs.output.equals(got.output)) return undefined;
  const { checkpoints } = got.result;
  const both: Both = { guest: image.guest, format, checkpoints, ours: got.output, theirs: theirs.output };
  const difference = DIFFERENCES.find(({ applies }) => applies(both));
  if (difference === undefined) {
    expect.fail(`${what}: upstream writes ${theirs.output.length} bytes, we ${got.output.length} others`);
  }
  return use(difference.reason);
}

describe('catalogue', () => {
  const good = images.filter(
    ({ name, upstream, like }) => upstream.exit === 0 || like !== undefined || TAKEN.includes(name),
  );
  for (const image of good) {
    if (!image.present)
      console.warn(`skipped: ${image.name} is not here (XEN_MIGRATION_STREAMS names its folder)`);
    it.skipIf(!image.present)(`${image.name}: the guest that stands in it comes out`, async () => {
      const bytes = image.stream();
      const got = await ours(bytes, image, 'libxl');
      // Those that we refuse have their reasons below, where upstream is asked.
      if (got.error !== undefined) {
        expect(REFUSED).toContain(image.name);
        return;
      }
      expect(REFUSED).not.toContain(image.name);
      expect(foldV2(got.output)).toEqual(reference(bytes, image));
      const { guest, width } = image;
      expect(got.result).toMatchObject({ guest, width, bytesWritten: got.output.length });
    });
  }

  const damaged = images.filter((image) => !good.includes(image));
  it('has the images that are named here', () => {
    expect([...REFUSED, ...TAKEN].map((name) => imageNamed(name).name)).toHaveLength(
      REFUSED.length + TAKEN.length,
    );
  });

  it.each(damaged)('$name: is refused, with a place', async (image) => {
    const got = await ours(image.stream(), image, 'libxl');
    expect(got.error).toBeDefined();
    expect(got.error?.code).toMatch(/^ERR_XEN_STREAM_/);
    expect(got.error?.offset).toBeLessThanOrEqual(image.stream().length);
  });

  const headed = images.filter(({ envelope, present }) => envelope === 'xl' && present);
  it.each(headed)(
    '$name: the header gets the flag of v2 streams and stays as it is otherwise',
    async (image) => {
      const file = image.bytes();
      const head = Uint8Array.from(file.subarray(0, xlHeaderSize(file)));
      head[36] = (head[36] as number) | 2;
      const bare = await converted(image.stream(), image, 'libxl');
      const whole = Buffer.from(await converted(file, image, 'xl'));
      expect(whole.equals(Buffer.concat([head, bare]))).toBe(true);
    },
  );

  it.each(images.filter(({ envelope }) => envelope === 'xend'))(
    '$name: behind the configuration stands the same stream',
    async (image) => {
      const whole = Buffer.from(await converted(image.bytes(), image, 'xl'));
      const bare = Buffer.from(await converted(image.stream(), image, 'libxl'));
      expect(whole.subarray(xlHeaderSize(whole)).equals(bare)).toBe(true);
    },
  );
});

describe('v2 to legacy and back', () => {
  // A PVH guest has no device model, so an image of it has no QEMU record.
  for (const capture of captures.filter(({ name }) => !name.startsWith('pvh'))) {
    if (!capture.present)
      console.warn(`skipped: ${capture.name} is not here (XEN_MIGRATION_STREAMS names its folder)`);
    it.skipIf(!capture.present)(capture.name, async () => {
      const bytes = readCapture(capture);
      const whole = foldV2(bytes);
      const image = legacyFromV2(bytes, { x87: true });
      const got = foldV2(await converted(image.bytes, image, 'libxl'));
      expect(image.dropped).toEqual(['X86_CPUID_POLICY', 'X86_MSR_POLICY']);
      expect(asLegacy(got, image)).toEqual(asLegacy(whole, image));
    });
  }
});

describe.skipIf(withoutOracle)('convert-legacy-stream', () => {
  let converter: Converter;
  beforeAll(() => {
    converter = new Converter();
  });
  afterAll(() => converter.close());

  describe('what upstream accepts comes out the same, byte for byte', () => {
    for (const image of images) {
      it.skipIf(!image.present)(image.name, async () => {
        const bytes = image.stream();
        for (const { name, format, skipQemu } of WAYS) {
          const theirs = await converter.convert(bytes, { ...image, format, skipQemu });
          const got = await ours(bytes, image, format, skipQemu);
          compare(`${image.name}, ${name}`, image, format, theirs, got);
        }
      });
    }
  });

  describe('what upstream cannot convert comes out as an image that is like it', () => {
    const like = images.filter((image) => image.like !== undefined);
    it.each(like)('$name', async (image) => {
      const plain = W.legacyImage(image.like as W.ImageSpec);
      const theirs = foldV2((await converter.convert(plain, image)).output);
      for (const [index, value] of image.params) theirs.params[index] = value;
      for (const format of FORMATS) {
        const got = foldV2(await converted(image.stream(), image, format));
        expect(got).toEqual(inFormat(theirs, format));
      }
    });
  });

  it('every reason to differ has an example in the catalogue', () => {
    const reasons = [...DIFFERENCES, ...REFUSALS, ...ACCEPTANCES].map(({ reason }) => reason);
    expect(reasons.filter((reason) => !used.has(reason))).toEqual([]);
  });

  const targets = [
    ...['hvm 4.5 save, 64-bit toolstack', 'hvm 4.5 live, 32-bit toolstack', 'hvm 4.0, 64-bit toolstack'],
    ...['hvm debug, live', 'hvm page types', 'hvm lost pfns', 'hvm Remus plain, 64-bit toolstack'],
    ...[
      'pv64 4.5 save, 64-bit toolstack',
      'pv64 4.5 live, 32-bit toolstack',
      'pv32 4.5 save, 32-bit toolstack',
    ],
    ...['pv32 4.5 live, 64-bit toolstack', 'pv64 SMP, 64-bit toolstack', 'pv64 4.1, 64-bit toolstack'],
    ...[
      'pv64 Remus plain, 64-bit toolstack',
      'hvm Remus compressed, 64-bit toolstack',
      'tmem ephemeral, live',
    ],
  ].map(imageNamed);
  describe.each(targets)('$name, damaged', (image) => {
    it.each(Object.entries(mutations))('%s', async (kind, mutate) => {
      const random = new Random(seedOf(`${image.name} ${kind}`));
      const pieces = image.pieces?.() ?? [];
      for (let i = 0; i < PER_KIND; i++) {
        const { what, bytes } = mutate(pieces, random);
        const { name, format, skipQemu } = WAYS[i % 3] as (typeof WAYS)[number];
        const theirs = await converter.convert(bytes, { ...image, format, skipQemu });
        const got = await ours(bytes, image, format, skipQemu);
        compare(`${image.name}, ${what}, ${name}`, image, format, theirs, got);
      }
    });
  });
});
