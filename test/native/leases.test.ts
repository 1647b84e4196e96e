/** Leases over a real page map, and over one that misbehaves. */
import { beforeEach, describe, expect, it } from 'vitest';
import { UsageError } from '../../lib/errors.js';
import type { NativePageMap } from '../../lib/host/xen/native.js';
import { loadAddon } from '../../lib/host/xen/addon.js';
import { LeasedMap } from '../../lib/host/xen/leases.js';

/** Counts what is asked of it; can fail on demand. */
class FakeMap implements NativePageMap {
  live = true;
  readonly byteLength = 8192;
  releases = 0;
  failures = 0;
  failBuffer = false;
  readonly #buffer = new ArrayBuffer(8192);

  buffer(): ArrayBuffer {
    if (this.failBuffer) throw new Error('no external buffers here');
    return this.#buffer;
  }
  release(): void {
    if (this.failures-- > 0) throw Object.assign(new Error('mmap: ENOMEM'), { code: 'ENOMEM' });
    this.releases++;
    this.live = false;
  }
}

describe('over real pages', () => {
  it('shows one memory as bytes and words, until the last lease ends', () => {
    const map = new LeasedMap(new (loadAddon().PageMap)(2));
    expect(map.bytes.length).toBe(8192);
    expect(map.words.length).toBe(2048);
    map.words[1024] = 0x04030201;
    expect([...map.bytes.subarray(4096, 4100)]).toEqual([1, 2, 3, 4]);

    const first = map.lease();
    const second = map.lease();
    map.release();
    expect(map.live).toBe(true);
    first.release();
    expect(map.bytes[4096]).toBe(1);
    second.release();
    expect(map.live).toBe(false);
    expect(map.bytes.length).toBe(0);
    expect(map.words.length).toBe(0);
  });

  it('releases at once without leases', () => {
    const map = new LeasedMap(new (loadAddon().PageMap)(1));
    map.lease().release();
    expect(map.live).toBe(true);
    map.release();
    map.release();
    expect(map.live).toBe(false);
  });

  it('works with `using`', () => {
    let seen: LeasedMap;
    {
      using map = new LeasedMap(new (loadAddon().PageMap)(1));
      seen = map;
      {
        using lease = map.lease();
        expect(lease).toBeDefined();
        expect(map.leases).toBe(1);
      }
      expect(map.leases).toBe(0);
    }
    expect(seen.live).toBe(false);
  });
});

describe('counting', () => {
  let fake: FakeMap;
  let map: LeasedMap;
  beforeEach(() => {
    fake = new FakeMap();
    map = new LeasedMap(fake);
  });

  it('counts a lease once, however often it is released', () => {
    const one = map.lease();
    const other = map.lease();
    one.release();
    one.release();
    one[Symbol.dispose]();
    expect(map.leases).toBe(1);
    map.release();
    expect(fake.releases).toBe(0);
    other.release();
    expect(fake.releases).toBe(1);
    expect(map.leases).toBe(0);
  });

  it('gives no lease once it was let go', () => {
    const lease = map.lease();
    map.release();
    expect(() => map.lease()).toThrow(UsageError);
    lease.release();
    expect(() => map.lease()).toThrow(UsageError);
    expect(map.leases).toBe(0);
  });

  it('does not release while a lease is out, whatever comes and goes', () => {
    const leases = Array.from({ length: 100 }, () => map.lease());
    map.release();
    for (const [i, lease] of leases.entries()) {
      expect(fake.releases, `before the end of lease ${i}`).toBe(0);
      lease.release();
    }
    expect(fake.releases).toBe(1);
  });

  it('tells whoever let go last that the pages could not be replaced, and can try again', () => {
    const lease = map.lease();
    map.release();
    fake.failures = 1;
    expect(() => {
      lease.release();
    }).toThrow('ENOMEM');
    expect(map.live).toBe(true);
    map.release();
    expect(map.live).toBe(false);
  });

  it('releases the map whose buffer cannot be had', () => {
    const broken = new FakeMap();
    broken.failBuffer = true;
    expect(() => new LeasedMap(broken)).toThrow('no external buffers');
    expect(broken.releases).toBe(1);
  });
});
