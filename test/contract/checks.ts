/** What the contract's tests check with. node:assert, so that they run wherever Node does. */
import assert from 'node:assert/strict';
import { Errno, errnoName } from '../../lib/abi/errno.js';
import { HypercallError } from '../../lib/errors.js';
import type { Domain } from '../../lib/host/host.js';

export function frames(first: number, count: number): Float64Array {
  return Float64Array.from({ length: count }, (_, i) => first + i);
}

/** The errno with which a call was refused; 0 if it was not. */
async function errnoOf(promise: Promise<unknown>): Promise<number> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (error === undefined) return 0;
  assert.ok(error instanceof HypercallError, error instanceof Error ? error.message : 'no error at all');
  return error.errno;
}

/** The call must be refused with this errno, or one of these. */
export async function refused(promise: Promise<unknown>, ...errnos: number[]): Promise<void> {
  const errno = await errnoOf(promise);
  const wanted = errnos.map(errnoName).join(' or ');
  assert.ok(
    errnos.includes(errno),
    `refused with ${errno === 0 ? 'nothing' : errnoName(errno)}, not ${wanted}`,
  );
}

/**
 * Waits until a domain that was destroyed is no more. Until its last page is given back it is there as one that is dying:
 * on Xen, xenstored and xenconsoled hold pages of a guest until they hear that it has died.
 */
export async function gone(domain: Domain): Promise<void> {
  for (;;) {
    try {
      has(await domain.info(), { dying: true });
    } catch (error) {
      if (!(error instanceof HypercallError)) throw error;
      assert.equal(errnoName(error.errno), errnoName(Errno.ESRCH));
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The call must be refused, whatever the errno. */
export async function refusedSomehow(promise: Promise<unknown>): Promise<void> {
  assert.notEqual(await errnoOf(promise), 0, 'was not refused');
}

export function greater(value: number | bigint, limit: number | bigint): void {
  assert.ok(value > limit, `${value} is not greater than ${limit}`);
}

export function atLeast(value: number, limit: number): void {
  assert.ok(value >= limit, `${value} is less than ${limit}`);
}

/** Each field that is named must have this value. */
export function has<T extends object>(actual: T, wanted: Partial<T>): void {
  for (const [name, value] of Object.entries(wanted)) {
    assert.equal(actual[name as keyof T], value, name);
  }
}

/** Set bits among the first n. */
export function bits(bitmap: Uint32Array, n: number): number[] {
  const set: number[] = [];
  for (let word = 0; word * 32 < n; word++) {
    const value = bitmap[word]!;
    for (let bit = 0; value !== 0 && bit < 32; bit++) {
      if (((value >>> bit) & 1) === 1 && word * 32 + bit < n) set.push(word * 32 + bit);
    }
  }
  return set;
}

export function isZero(page: Uint8Array): boolean {
  return page.every((b) => b === 0);
}

/** Populates pfns; returns what hypercalls take for them. */
export async function populated(domain: Domain, first: number, count: number): Promise<Float64Array> {
  const list = frames(first, count);
  assert.equal(await domain.populate(list), count);
  return list;
}
