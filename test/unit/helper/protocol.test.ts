import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  decodeFrame,
  encodeComplete,
  encodeLog,
  encodeProgress,
  encodeRestoreResults,
  encodeStaticDataDone,
  encodeSuspend,
  encodeSwitchQemuLogdirty,
  LogLevel,
  type HelperMessage,
} from '../../../lib/helper/protocol.js';

const hex = (bytes: Uint8Array): string =>
  Buffer.from(bytes)
    .toString('hex')
    .replaceAll(/(..)(?=.)/g, '$1 ');

/** Bytes that Xen 4.17's own helper sends, and the messages that they are. */
const golden: [string, Uint8Array, string, HelperMessage][] = [
  [
    'log',
    encodeLog(LogLevel.INFO, undefined, 'xc', 'Hi'),
    '18 00 01 00 05 00 00 00 ff ff ff ff 03 00 00 00 78 63 00 03 00 00 00 48 69 00',
    { kind: 'log', level: 5, errno: undefined, context: 'xc', text: 'Hi' },
  ],
  [
    'progress',
    encodeProgress('xc', 'Frames', 1024, 262144),
    '24 00 02 00 03 00 00 00 78 63 00 07 00 00 00 46 72 61 6d 65 73 00 00 04 00 00 00 00 00 00 00 00 04 00 00 00 00 00',
    { kind: 'progress', context: 'xc', what: 'Frames', done: 1024, total: 262144 },
  ],
  ['suspend', encodeSuspend(), '02 00 03 00', { kind: 'suspend' }],
  [
    'switch_qemu_logdirty',
    encodeSwitchQemuLogdirty(5, true),
    '0a 00 07 00 05 00 00 00 01 00 00 00',
    { kind: 'switch_qemu_logdirty', domid: 5, enable: 1 },
  ],
  [
    'static_data_done',
    encodeStaticDataDone(3),
    '06 00 08 00 03 00 00 00',
    { kind: 'static_data_done', missing: 3 },
  ],
  [
    'restore_results',
    encodeRestoreResults(0xfeffc, 0xfefff),
    '12 00 09 00 fc ef 0f 00 00 00 00 00 ff ef 0f 00 00 00 00 00',
    { kind: 'restore_results', storeGfn: 0xfeffc, consoleGfn: 0xfefff },
  ],
  [
    'complete',
    encodeComplete(-1, 32),
    '0a 00 0a 00 ff ff ff ff 20 00 00 00',
    { kind: 'complete', retval: -1, errno: 32 },
  ],
];

describe('frames', () => {
  it.each(golden)('%s', (_name, frame, bytes, message) => {
    expect(hex(frame)).toBe(bytes);
    expect(decodeFrame(frame)).toEqual(message);
  });

  it('carry an errno where there is one', () => {
    expect(decodeFrame(encodeLog(LogLevel.ERROR, 28, 'xc', 'x'))).toMatchObject({ errno: 28 });
    expect(decodeFrame(encodeLog(LogLevel.ERROR, 0, 'xc', 'x'))).toMatchObject({ errno: 0 });
  });

  it('carry any text as one C string without line ends', () => {
    const frame = encodeLog(LogLevel.INFO, undefined, 'x\0c', 'one\ntwo\r\n\0three – ✓');
    expect(decodeFrame(frame)).toMatchObject({ context: 'x c', text: 'one two three – ✓' });
  });

  it('stay below 64 KiB, and cut no character in two', () => {
    for (const text of ['x'.repeat(200_000), '✓'.repeat(100_000), `a${'✓'.repeat(100_000)}`]) {
      const frame = encodeLog(LogLevel.ERROR, 1, text, text);
      expect(frame.length).toBeLessThan(65536);
      const message = decodeFrame(frame);
      if (message?.kind !== 'log') throw new Error('no log message');
      expect(message.text.length).toBeGreaterThan(5000);
      expect(text.startsWith(message.text)).toBe(true);
    }
  });

  it('come back from any text and numbers', () => {
    const number = fc.nat({ max: Number.MAX_SAFE_INTEGER });
    fc.assert(
      fc.property(fc.string(), fc.string(), number, number, (context, what, done, total) => {
        const message = decodeFrame(encodeProgress(context, what, done, total));
        expect(message).toMatchObject({ kind: 'progress', done, total });
      }),
    );
  });
});

describe('what libxl would drop', () => {
  it('is every frame that is cut off, or followed by more', () => {
    for (const [name, frame] of golden) {
      for (let length = 0; length < frame.length; length++) {
        const cut = frame.slice(0, length);
        expect(decodeFrame(cut), `${name} cut at ${length}`).toBeUndefined();
        if (length < 4) continue;
        new DataView(cut.buffer).setUint16(0, length - 2, true);
        expect(decodeFrame(cut), `${name} cut at ${length}, length adjusted`).toBeUndefined();
      }
      const longer = Buffer.concat([frame, Buffer.of(0)]);
      longer.writeUInt16LE(longer.length - 2, 0);
      expect(decodeFrame(longer), name).toBeUndefined();
    }
  });

  it('is an unknown number and a string without its NUL', () => {
    expect(decodeFrame(Buffer.from('02000000', 'hex'))).toBeUndefined();
    expect(decodeFrame(Buffer.from('02000b00', 'hex'))).toBeUndefined();
    const frame = Buffer.from(encodeLog(LogLevel.INFO, undefined, 'xc', 'Hi'));
    frame[frame.length - 1] = 0x21;
    expect(decodeFrame(frame)).toBeUndefined();
  });
});
