/**
 * What a guest's worker and its host say to each other. A request is posted first, then ATTENTION is counted up, so
 * the worker, which sleeps on ATTENTION, finds it.
 */
import type { PvKernelHandle } from '../pv-kernel.js';
import type { BootPage } from './boot-page.js';
import type { SharedGuest } from './guest-memory.js';
import type { CheckResult } from './program.js';

/** Words of the control block, an Int32Array in shared memory. */
export const Control = {
  /** Counted up by the host for each request. */
  ATTENTION: 0,
  /** Step number, 30 bits each, for a glance without a request. */
  STEPS_LOW: 1,
  STEPS_HIGH: 2,
  ERRORS: 3,
  WORDS: 4,
} as const;

/** `create` and `resume` load a program, `run` and `halt` start and stop it between two steps. */
export type GuestRequest = { readonly id: number } & (
  | {
      readonly op: 'create';
      readonly shared: SharedGuest;
      readonly kernel: PvKernelHandle | undefined;
      readonly boot: BootPage;
      readonly trace: Uint32Array | undefined;
    }
  | {
      readonly op: 'resume';
      readonly shared: SharedGuest;
      readonly kernel: PvKernelHandle | undefined;
      readonly registers: Uint8Array;
    }
  | { readonly op: 'run' }
  | { readonly op: 'halt' }
  | { readonly op: 'check' }
);

/** Answers by the request's id. */
export interface GuestReply {
  readonly id: number;
  /** create, run: true. resume: false if there is no intact program. halt: registers. check: the result. */
  readonly value: boolean | Uint8Array | CheckResult;
  readonly error?: string;
}
