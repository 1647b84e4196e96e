import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { getEventListeners } from 'node:events';
import { describe, expect, test, vi } from 'vitest';
import { CancelledError, GuestError } from '../../../lib/errors.js';
import { channels, JobControl } from '../../../lib/job.js';
import type { Progress } from '../../../lib/progress.js';

describe('JobControl', () => {
  test('a job that is not stopped completes, and its snapshot stands still after that', async () => {
    const control = new JobControl('save', 3, {});
    expect(control.status).toMatchObject({ operation: 'save', state: 'active', phase: 'setup', domid: 3 });
    await expect(control.run(async () => 7)).resolves.toBe(7);
    const { elapsed, state, phase } = control.status;
    expect([state, phase]).toEqual(['completed', 'done']);
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(control.status.elapsed).toBe(elapsed);
  });

  test('the caller’s signal stops it, with the reason as cause, and its listener goes away', async () => {
    const outer = new AbortController();
    const control = new JobControl('save', 3, { signal: outer.signal });
    const running = control.run(
      () =>
        new Promise<never>((_, reject) => {
          control.signal.addEventListener('abort', () => reject(control.signal.reason as Error));
        }),
    );
    control.enter('pre-copy');
    outer.abort('maintenance');
    const error = await running.catch((e: unknown) => e);
    expect(error).toBeInstanceOf(CancelledError);
    expect(error).toMatchObject({
      code: 'ERR_XEN_CANCELLED',
      phase: 'pre-copy',
      domid: 3,
      cause: 'maintenance',
    });
    expect(control.status.state).toBe('cancelled');
    expect(getEventListeners(outer.signal, 'abort')).toHaveLength(0);
  });

  test('a signal that is aborted already starts nothing', async () => {
    const operation = vi.fn(async () => 1);
    const control = new JobControl('restore', undefined, { signal: AbortSignal.abort() });
    await expect(control.run(operation)).rejects.toBeInstanceOf(CancelledError);
    expect(operation).not.toHaveBeenCalled();
  });

  test('an error gets the phase and the domain, but keeps its own', async () => {
    const control = new JobControl('save', 9, {});
    const error = await control
      .run(async () => {
        control.enter('suspend');
        throw new GuestError('ERR_XEN_GUEST_CRASHED', 'it crashed');
      })
      .catch((e: unknown) => e);
    expect(error).toMatchObject({ phase: 'suspend', domid: 9 });
    expect(control.status.state).toBe('failed');
    const other = new JobControl('save', 9, {});
    const kept = await other
      .run(async () => {
        throw new GuestError('ERR_XEN_GUEST_CRASHED', 'it crashed', { phase: 'state', domid: 1 });
      })
      .catch((e: unknown) => e);
    expect(kept).toMatchObject({ phase: 'state', domid: 1 });
  });

  test('cancel after the end is nothing', async () => {
    const control = new JobControl('save', 1, {});
    await control.run(async () => undefined);
    control.cancel('late');
    expect(control.signal.aborted).toBe(false);
    expect(control.status.state).toBe('completed');
  });

  test('phases are always told, notes at most once an interval, and a throwing listener harms nothing', async () => {
    const seen: Progress[] = [];
    const control = new JobControl('save', 1, {
      progressInterval: 60_000,
      onProgress: (p) => {
        seen.push(p);
        throw new Error('listener');
      },
    });
    await control.run(async () => {
      control.enter('pre-copy');
      for (let i = 0; i < 100; i++) control.note({ transferred: i });
      control.enter('suspend');
    });
    expect(seen.map((p) => p.phase)).toEqual(['pre-copy', 'suspend', 'done']);
    expect(seen[1]?.transferred).toBe(99);
  });

  test('diagnostics channels hear of start, progress, passes and end', async () => {
    const heard: [string, unknown][] = [];
    const listeners = Object.values(channels).map((c) => {
      const name = String(c.name);
      const listener = (message: unknown): void => void heard.push([name, message]);
      subscribe(name, listener);
      return () => unsubscribe(name, listener);
    });
    const control = new JobControl('save', 4, {});
    await control.run(async () => {
      control.enter('pre-copy');
      control.iteration({
        iteration: 0,
        dirtyPages: 1,
        sentPages: 1,
        dataPages: 1,
        bytes: 2,
        ms: 3,
        rate: 4,
        suspended: false,
      });
    });
    for (const stop of listeners) stop();
    expect(heard.map(([name]) => name.slice('xen-migration:job:'.length))).toEqual([
      'start',
      'progress',
      'iteration',
      'progress',
      'end',
    ]);
    expect(heard[2]?.[1]).toMatchObject({ domid: 4, operation: 'save', iteration: 0 });
  });
});
