/**
 * The worker thread in which a guest runs. It never returns to its event loop: it runs slices of the program, and
 * between two steps looks whether the host wants something. So the guest stops only between steps, and a stopped
 * guest costs no time.
 */
import { receiveMessageOnPort, workerData, type MessagePort } from 'node:worker_threads';
import { tickKernel } from '../pv-activity.js';
import { checkKernel } from '../pv-check.js';
import { openPvKernel, type PvKernelHandle } from '../pv-kernel.js';
import { KERNEL_TICK } from '../pv-types.js';
import { GuestMemory } from './guest-memory.js';
import { Pace } from './pace.js';
import { GuestProgram, type ProgramKernel } from './program.js';
import { decodeRegisters, encodeRegisters } from './registers.js';
import { Control, type GuestReply, type GuestRequest } from './worker-protocol.js';

/** Steps between two looks at the control block. */
const SLICE = 64;
/** Longest time of a paced guest's sleep, in ms. */
const TICK = 5;

const { port, control } = workerData as { port: MessagePort; control: Int32Array };

let program: GuestProgram | undefined;
/** The program, while the host wants it to run. */
let active: GuestProgram | undefined;
let pace = new Pace(0, 0);

function required(): GuestProgram {
  if (program === undefined) throw new Error('no program loaded');
  return program;
}

/** The kernel of a PV guest, as its program needs it. */
function kernelOf(handle: PvKernelHandle | undefined, memory: GuestMemory): ProgramKernel | undefined {
  if (handle === undefined) return undefined;
  const kernel = openPvKernel(handle, (pfn) => memory.markDirty(pfn));
  return {
    every: KERNEL_TICK,
    tick: () => tickKernel(kernel),
    check: () => checkKernel(kernel),
  };
}

function serve(request: GuestRequest): GuestReply['value'] {
  switch (request.op) {
    case 'create': {
      const memory = new GuestMemory(request.shared);
      program = GuestProgram.create(memory, kernelOf(request.kernel, memory), request.boot, request.trace);
      return true;
    }
    case 'resume': {
      const registers = decodeRegisters(request.registers);
      const memory = new GuestMemory(request.shared);
      program =
        typeof registers === 'string'
          ? undefined
          : GuestProgram.resume(memory, kernelOf(request.kernel, memory), registers);
      return program !== undefined;
    }
    case 'run':
      active = required();
      pace = new Pace(active.boot.rate, performance.now());
      return true;
    case 'halt':
      active = undefined;
      return encodeRegisters(required().registers());
    case 'check':
      return required().check();
  }
}

/** Runs until the host wants something. */
function runFor(p: GuestProgram, seen: number): void {
  const { rate } = p.boot;
  while (Atomics.load(control, Control.ATTENTION) === seen) {
    const n = pace.take(Math.min(SLICE, p.appetite), performance.now());
    if (n > 0) {
      p.run(n);
      publish();
    } else if (p.appetite === 0) {
      Atomics.wait(control, Control.ATTENTION, seen);
    } else {
      Atomics.wait(control, Control.ATTENTION, seen, Math.min(TICK, Math.ceil(1000 / rate)));
    }
  }
}

/** Leaves the step number where the host can read it without asking. */
function publish(): void {
  if (program === undefined) return;
  Atomics.store(control, Control.STEPS_HIGH, Math.floor(program.steps / 0x4000_0000));
  Atomics.store(control, Control.STEPS_LOW, program.steps % 0x4000_0000);
  Atomics.store(control, Control.ERRORS, program.errors);
}

for (;;) {
  const seen = Atomics.load(control, Control.ATTENTION);
  for (;;) {
    const received = receiveMessageOnPort(port) as { message: GuestRequest } | undefined;
    if (received === undefined) break;
    const { id } = received.message;
    try {
      const value = serve(received.message);
      publish();
      port.postMessage({ id, value } satisfies GuestReply);
    } catch (error) {
      port.postMessage({ id, value: false, error: String(error) } satisfies GuestReply);
    }
  }
  if (active === undefined) Atomics.wait(control, Control.ATTENTION, seen);
  else runFor(active, seen);
}
