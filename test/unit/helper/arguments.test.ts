import { describe, expect, it } from 'vitest';
import { parseHelperArguments } from '../../../lib/helper/arguments.js';
import { UsageError } from '../../../lib/errors.js';

const save = ['--save-domain', '11', '-1', '3', '1', '136', '0'];
const restore = ['--restore-domain', '7', '-1', '4', '1', '0', '2', '0', '768', '0'];

function replaced(argv: readonly string[], index: number, text: string): string[] {
  return argv.map((old, i) => (i === index ? text : old));
}

describe('arguments', () => {
  it('of a save', () => {
    expect(parseHelperArguments(save)).toEqual({
      mode: 'save',
      ioFd: 11,
      recvFd: -1,
      domid: 3,
      live: true,
      debug: false,
      callbacks: 136,
      streamType: 0,
    });
    expect(parseHelperArguments(replaced(save, 4, '0'))).toMatchObject({ live: false, debug: false });
    expect(parseHelperArguments(replaced(save, 4, '3'))).toMatchObject({ live: true, debug: true });
    expect(parseHelperArguments(replaced(save, 2, '0'))).toMatchObject({ recvFd: 0 });
    expect(parseHelperArguments(replaced(save, 5, '4294967295'))).toMatchObject({ callbacks: 0xffff_ffff });
  });

  it('of a restore', () => {
    expect(parseHelperArguments(restore)).toEqual({
      mode: 'restore',
      ioFd: 7,
      sendBackFd: -1,
      domid: 4,
      wiring: { storeEvtchn: 1, storeDomid: 0, consoleEvtchn: 2, consoleDomid: 0 },
      callbacks: 768,
      streamType: 0,
    });
  });

  it.each([
    ['none', []],
    ['another mode', ['--help']],
    ['a mode alone', ['--save-domain']],
    ['one too few', save.slice(0, -1)],
    ['one too many', [...save, '0']],
    ['a restore one too few', restore.slice(0, -1)],
    ['a restore one too many', [...restore, '0']],
    ['a save of a restore', ['--save-domain', ...restore.slice(1)]],
  ])('are refused: %s', (_name, argv) => {
    expect(() => parseHelperArguments(argv)).toThrow(UsageError);
  });

  it.each(['', ' 1', '1 ', '+1', '0x1', '01', '1.0', '1e1', 'one', '-2', '-0', '99999999999'])(
    'are refused with "%s" in any place',
    (text) => {
      for (const argv of [save, restore]) {
        for (let i = 1; i < argv.length; i++) {
          expect(() => parseHelperArguments(replaced(argv, i, text)), argv[i]).toThrow(UsageError);
        }
      }
    },
  );

  it('are refused out of their range', () => {
    expect(() => parseHelperArguments(replaced(save, 1, '-1'))).toThrow(/io_fd: "-1"/);
    expect(() => parseHelperArguments(replaced(save, 3, '32752'))).toThrow(/domid/);
    expect(() => parseHelperArguments(replaced(save, 4, '4'))).toThrow(/flags/);
    expect(() => parseHelperArguments(replaced(save, 6, '3'))).toThrow(/stream_type/);
    expect(() => parseHelperArguments(replaced(save, 5, '128'))).toThrow(/suspend callback/);
  });
});
