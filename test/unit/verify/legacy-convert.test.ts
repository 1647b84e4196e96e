/** What the verifier promises of legacy images: those without errors convert, but for swapped-out memory in tmem. */

import { describe, expect, it } from 'vitest';
import { convert } from '../../../lib/convert/convert.js';
import { StreamFormatError } from '../../../lib/errors.js';
import { Verifier } from '../../../lib/stream/index.js';
import { MemorySink } from '../../../lib/transport/memory.js';
import { Random } from '../../differential/mutate.js';
import { imageNamed, images } from '../../legacy/images.js';
import { mutations } from '../../legacy/mutate.js';

function valid(bytes: Uint8Array): boolean {
  const verifier = new Verifier();
  verifier.feed(bytes);
  return verifier.end().valid;
}

/** Why it does not convert; undefined if it does, and if nothing but tmem is in the way. */
async function refusal(bytes: Uint8Array): Promise<string | undefined> {
  try {
    await convert({ from: bytes, to: new MemorySink(), tmem: 'drop-ephemeral' });
    return undefined;
  } catch (error) {
    if (!(error instanceof StreamFormatError)) throw error;
    return /which v2 streams cannot carry/.test(error.message) ? undefined : error.message;
  }
}

const small = images.filter(({ present, small: is }) => present && is);

describe('what is valid converts', () => {
  const good = small.filter((image) => valid(image.bytes())).map(({ name }) => name);

  it('most of the catalogue is', () => {
    expect(good.length).toBeGreaterThan(200);
  });

  it.each(good)('%s', async (name) => {
    expect(await refusal(imageNamed(name).bytes())).toBeUndefined();
  });

  it.each([
    'hvm 4.5 live, 64-bit toolstack',
    'hvm toolstack, odd names, 32-bit toolstack',
    'pv64 SMP, 64-bit toolstack',
    'pv32 4.5 save, 32-bit toolstack',
    'hvm Remus plain, 64-bit toolstack',
    'pv64 Remus compressed, 64-bit toolstack',
    'tmem ephemeral, live',
    'tmem persistent, mixed',
  ])('damaged: %s', async (name) => {
    const list = imageNamed(name).pieces?.() ?? [];
    const random = new Random(name.length);
    let seen = 0;
    for (let i = 0; i < 100; i++) {
      const { what, bytes } = random.pick(Object.values(mutations))(list, random);
      if (!valid(bytes)) continue;
      seen++;
      expect(await refusal(bytes), what).toBeUndefined();
    }
    expect(seen).toBeGreaterThan(0);
  });
});
