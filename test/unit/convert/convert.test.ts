/** Conversion around its bytes: cut-off images, files and pipes, cancelling, disks that fail. The bytes: test/differential. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync, existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { PassThrough, Readable, Writable } from 'node:stream';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { convert, startConvert } from '../../../lib/convert/convert.js';
import type { ConvertOptions } from '../../../lib/convert/types.js';
import { CancelledError, StreamFormatError, TransportError, UsageError } from '../../../lib/errors.js';
import { decodeXlHeader, verify, XL_HEADER_SIZE } from '../../../lib/stream/index.js';
import { MemorySink, MemorySource } from '../../../lib/transport/memory.js';
import { foldV2 } from '../../legacy/fold.js';
import { images, imageNamed, type Example } from '../../legacy/images.js';
import { foldLegacy } from '../../legacy/reference.js';
import * as W from '../../legacy/writer.js';

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'xen-migration-convert-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

async function inMemory(from: Uint8Array, options: Partial<ConvertOptions> = {}) {
  const to = new MemorySink();
  const result = await convert({ temporary: folder, output: 'libxl', ...options, from, to });
  return { result, bytes: to.bytes };
}

const wordOf = ({ width }: Example): W.Word => (width === 64 ? 8 : 4);

function guestIn(image: Example, bytes = image.stream()) {
  const { rounds, ...folded } = foldLegacy(bytes, image.guest, wordOf(image));
  return { rounds, folded };
}

const small = images.filter((image) => image.small && image.present && image.envelope === 'none');
// Those that the plain reading can make sense of.
const remus = small.filter(
  ({ name, pieces, like }) => / Remus /.test(name) && pieces !== undefined && like !== undefined,
);
const damaged = small.filter(({ name }) => / Remus .*damaged/.test(name));
const plain = small.filter((image) => image.upstream.exit === 0 && !remus.includes(image));

// Some of each kind of guest and each size of words.
const toCut = ['hvm', 'pv64', 'pv32'].flatMap((kind) =>
  [64, 32].flatMap((width) =>
    plain.filter((image) => image.name.startsWith(`${kind} `) && image.width === width).slice(0, 3),
  ),
);

it('has images to try', () => {
  expect(plain.length).toBeGreaterThan(20);
  expect(toCut).toHaveLength(18);
  expect(remus.length).toBeGreaterThan(4);
  expect(damaged.length).toBeGreaterThan(1);
});

/** Where to cut: at the ends of pieces, and here and there. The reader's tests cut at every byte. */
function cuts(image: Example): number[] {
  const end = image.stream().length;
  const at = new Set<number>();
  let position = 0;
  for (const { bytes } of image.pieces?.() ?? []) {
    position += bytes.length;
    at.add(position - 1).add(position);
  }
  for (let k = 1; k < end; k += 4999) at.add(k);
  return [...at].filter((k) => k > 0 && k <= end).sort((x, y) => x - y);
}

describe('an image that is cut off', () => {
  it.each(toCut.map((image) => [image.name, image] as const))(
    'is refused: %s',
    async (_, image) => {
      const whole = image.stream();
      for (const length of cuts(image).filter((k) => k < whole.length)) {
        const error: unknown = await inMemory(whole.subarray(0, length)).catch((reason: unknown) => reason);
        if (!(error instanceof StreamFormatError)) {
          // Of the images without a last checkpoint's mark the bytes behind are nobody's.
          const { rounds } = guestIn(image, whole.subarray(0, length));
          expect(rounds, `${length} bytes are taken for a whole image`).toBe(1);
          continue;
        }
        expect(error.code, `${length} bytes: ${error.message}`).toBe('ERR_XEN_STREAM_TRUNCATED');
        expect(error.offset).toBe(length);
      }
    },
    30_000,
  );

  it.each(remus.map((image) => [image.name, image] as const))(
    'is its last complete checkpoint: %s',
    async (_, image) => {
      const whole = image.stream();
      const { rounds: all } = guestIn(image);
      const seen = new Set<number>();
      for (const length of cuts(image)) {
        const bytes = whole.subarray(0, length);
        let expected: ReturnType<typeof guestIn> | undefined;
        try {
          expected = guestIn(image, bytes);
        } catch {
          expected = undefined;
        }
        if (expected === undefined || expected.rounds === 0) {
          await expect(inMemory(bytes)).rejects.toBeInstanceOf(StreamFormatError);
          continue;
        }
        const { result, bytes: out } = await inMemory(bytes);
        expect(result.checkpoints).toBe(expected.rounds);
        seen.add(result.checkpoints);
        expect(foldV2(out)).toEqual({ ...expected.folded, checkpoints: foldV2(out).checkpoints });
      }
      expect([...seen].length).toBeGreaterThanOrEqual(Math.min(all, 2));
      expect(readdirSync(folder)).toEqual([]);
    },
    30_000,
  );
});

it.each(damaged.map((image) => [image.name, image] as const))(
  'refuses what is damaged: %s',
  async (_, image) => {
    await expect(inMemory(image.stream())).rejects.toBeInstanceOf(StreamFormatError);
    expect(readdirSync(folder)).toEqual([]);
  },
);

describe('files', () => {
  const image = imageNamed('xl hvm');

  it('come into being whole, and the old one goes only then', async () => {
    const from = path.join(folder, 'in');
    const to = path.join(folder, 'out');
    writeFileSync(from, image.bytes());
    writeFileSync(to, 'old');
    const result = await convert({ from, to });
    expect(result).toMatchObject({
      output: 'xl',
      input: 'xl',
      guest: 'hvm',
      checkpoints: 1,
      xend: undefined,
    });
    expect(result.bytesWritten).toBe(readFileSync(to).length);
    expect(result.bytesRead).toBe(image.bytes().length);
    const report = await verify(new MemorySource(readFileSync(to)), { format: 'xl' });
    expect(report.findings.filter(({ severity }) => severity === 'error')).toEqual([]);

    writeFileSync(from, image.bytes().subarray(0, -1));
    writeFileSync(to, 'old');
    await expect(convert({ from, to })).rejects.toMatchObject({ code: 'ERR_XEN_STREAM_TRUNCATED' });
    expect(readFileSync(to, 'utf8')).toBe('old');
    rmSync(to);
    await expect(convert({ from, to })).rejects.toMatchObject({ code: 'ERR_XEN_STREAM_TRUNCATED' });
    expect(readdirSync(folder)).toEqual(['in']);
  });

  it('keep xl’s header but for the flag', async () => {
    const to = new MemorySink();
    await convert({ from: image.bytes(), to });
    const [before, after] = [decodeXlHeader(image.bytes()), decodeXlHeader(to.bytes)];
    expect(after).toEqual({ ...before, mandatoryFlags: before.mandatoryFlags | 2 });
  });

  it('without xl’s header get one that is empty if it is asked for', async () => {
    const { bytes } = await inMemory(imageNamed('xl hvm').stream(), { output: 'xl' });
    expect(decodeXlHeader(bytes)).toMatchObject({ mandatoryFlags: 2, config: undefined });
    expect(bytes.subarray(XL_HEADER_SIZE + 4, XL_HEADER_SIZE + 12)).toEqual(
      new TextEncoder().encode('LibxlFmt'),
    );
  });

  it('of xend get libxl’s configuration', async () => {
    const xend = imageNamed('xend hvm');
    const to = new MemorySink();
    const result = await convert({ from: xend.bytes(), to });
    expect(result).toMatchObject({ input: 'xend', output: 'xl', guest: 'hvm' });
    expect(new TextDecoder().decode(result.xend?.config)).toBe(W.xendConfig('hvm'));
    const { config, mandatoryFlags } = decodeXlHeader(to.bytes);
    expect(mandatoryFlags).toBe(3);
    expect(JSON.parse(config ?? '')).toMatchObject({ c_info: { type: 'hvm', name: 'guest' } });
  });

  it('of xend are refused if configuration and image are of different guests', async () => {
    const bytes = Buffer.concat([W.xendHeader(W.xendConfig('pv')), imageNamed('xl hvm').stream()]);
    await expect(convert({ from: bytes, to: new MemorySink() })).rejects.toMatchObject({
      code: 'ERR_XEN_STREAM_CONFIG',
    });
  });

  it('that are v2 already are refused', async () => {
    const { bytes } = await inMemory(image.stream());
    for (const output of ['libxl', 'libxc'] as const) {
      await expect(inMemory(bytes, { output })).rejects.toMatchObject({ code: 'ERR_XEN_STREAM_FORMAT' });
    }
  });

  it('that are something else are refused', async () => {
    await expect(inMemory(new TextEncoder().encode('hello, this is a text'))).rejects.toMatchObject({
      code: 'ERR_XEN_STREAM_FORMAT',
    });
  });
});

describe('what is told', () => {
  const image = imageNamed('xl pv');

  it('must be right', async () => {
    await expect(inMemory(image.stream(), { guest: 'hvm' })).rejects.toMatchObject({
      code: 'ERR_XEN_STREAM_GUEST_TYPE',
      offset: 8,
    });
    await expect(inMemory(image.stream(), { width: 32 })).rejects.toMatchObject({
      code: 'ERR_XEN_STREAM_FIELD',
      offset: 4,
    });
    const { result } = await inMemory(image.stream(), { guest: 'pv', width: 64 });
    expect(result).toMatchObject({ guest: 'pv', width: 64, guestWidth: 8 });
  });

  it('must be possible', () => {
    const to = new MemorySink();
    const from = image.bytes();
    expect(() => startConvert({ from, to, width: 16 as 32 })).toThrow(UsageError);
    expect(() => startConvert({ from, to, heartbeat: 0 })).toThrow(UsageError);
  });
});

describe('compressed checkpoints', () => {
  const image = remus.find(({ name }) => name.includes('compressed')) as Example;

  it('from a file to a pipe, and from a pipe to a file', async () => {
    const { folded } = guestIn(image);
    const file = path.join(folder, 'in');
    writeFileSync(file, image.stream());
    const chunks: Uint8Array[] = [];
    const pipe = new Writable({
      write(chunk: Uint8Array, _, done) {
        chunks.push(Uint8Array.from(chunk));
        done();
      },
    });
    const result = await convert({ from: file, to: pipe, output: 'libxl', temporary: folder });
    expect(result.compressed).toBe(true);
    expect(result.temporaryBytes).toBeGreaterThan(0);
    expect(foldV2(Buffer.concat(chunks))).toMatchObject({ pages: folded.pages });

    const to = path.join(folder, 'out');
    await convert({ from: Readable.from([image.stream()]), to, output: 'libxl', temporary: folder });
    expect(readFileSync(to)).toEqual(Buffer.concat(chunks));
  });

  it('from a pipe to a pipe are refused, with the way out', async () => {
    const from = Readable.from([image.stream()], { objectMode: false });
    await expect(convert({ from, to: new MemorySink(), output: 'libxl', temporary: folder })).rejects.toThrow(
      /give it as a file, or let the output be one/,
    );
  });

  it('need a folder for what is temporary', async () => {
    await expect(
      convert({ from: image.stream(), to: new MemorySink(), temporary: path.join(folder, 'none') }),
    ).rejects.toBeInstanceOf(TransportError);
  });
});

describe('an image without a last mark', () => {
  const image = remus.find(({ name }) => !name.includes('compressed')) as Example;

  it('is over after a heartbeat of silence, if one is told', async () => {
    const from = new PassThrough();
    from.write(image.stream());
    const to = new MemorySink();
    const result = await convert({ from, to, output: 'libxl', heartbeat: 20, temporary: folder });
    expect(result.checkpoints).toBe(guestIn(image).rounds);
    expect(foldV2(to.bytes).pages).toEqual(guestIn(image).folded.pages);
  });

  it('is waited for within a checkpoint, however long', async () => {
    const whole = image.stream();
    const from = new PassThrough();
    from.write(whole.subarray(0, 200));
    const to = new MemorySink();
    const job = startConvert({ from, to, output: 'libxl', heartbeat: 1, temporary: folder });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(job.status.state).toBe('active');
    from.end(whole.subarray(200));
    expect((await job.result).checkpoints).toBe(guestIn(image).rounds);
  });
});

describe('a conversion', () => {
  const image = imageNamed('xl hvm live');

  it('can be cancelled while it waits for its input', async () => {
    const from = new PassThrough();
    from.write(image.bytes().subarray(0, 5000));
    const to = path.join(folder, 'out');
    const job = startConvert({ from, to });
    await new Promise((resolve) => setTimeout(resolve, 20));
    job.cancel('enough');
    await expect(job.result).rejects.toBeInstanceOf(CancelledError);
    expect(existsSync(to)).toBe(false);
    expect(readdirSync(folder)).toEqual([]);
  });

  it('can be cancelled while nobody reads its output', async () => {
    const to = new Writable({ highWaterMark: 1, write: () => undefined });
    const abort = new AbortController();
    const job = startConvert({ from: image.bytes(), to, signal: abort.signal });
    await new Promise((resolve) => setTimeout(resolve, 20));
    abort.abort(new Error('enough'));
    await expect(job.result).rejects.toMatchObject({ name: 'CancelledError' });
  });

  it('fails with its output', async () => {
    for (const after of [0, 1, 3]) {
      let writes = 0;
      const to = new Writable({
        write: (_chunk, _encoding, done) => done(writes++ === after ? new Error('disk full') : null),
      });
      await expect(convert({ from: image.bytes(), to })).rejects.toThrow(/disk full/);
    }
  });

  it('says how far it is', async () => {
    const seen: string[] = [];
    const to = new MemorySink();
    const { elapsed, ...result } = await convert({
      from: image.bytes(),
      to,
      progressInterval: 0,
      onProgress: ({ operation, phase }) => seen.push(`${operation} ${phase}`),
    });
    expect(elapsed).toBeGreaterThan(0);
    expect(result.dataPages).toBeGreaterThan(0);
    expect(seen.at(0)).toBe('convert memory');
    expect(seen.at(-1)).toBe('convert done');
  });

  it('exports tmem only with the image, and removes what it exported if that fails', async () => {
    const swapped = images.find(
      ({ name, present }) => present && name.startsWith('tmem') && name.includes('persistent'),
    );
    expect(swapped).toBeDefined();
    const bytes = (swapped as Example).stream();
    const target = path.join(folder, 'pages');
    await expect(inMemory(bytes)).rejects.toMatchObject({ code: 'ERR_XEN_STREAM_TMEM' });
    await expect(inMemory(bytes.subarray(0, -1), { tmem: { export: target } })).rejects.toThrow();
    expect(existsSync(target)).toBe(false);
    const { result } = await inMemory(bytes, { tmem: { export: target } });
    expect(result.tmem?.exported).toBe(target);
    expect(readdirSync(target).length).toBeGreaterThan(1);
  });
});

it.each([
  ['gzip', gzipSync(imageNamed('xl hvm').bytes())],
  ['zstd', Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4, 5)],
])('says what a file of %s is', async (name, bytes) => {
  await expect(inMemory(bytes)).rejects.toThrow(new RegExp(`file of ${name}.*decompress it first`));
});
