/**
 * Moves an HVM or PVH guest between two hosts through the ports alone: what a migration has to do, without streams.
 * `tamper` stands between the hosts, so that tests can see what a guest finds out about a bad migration.
 */
import { PAGE_SIZE, PageType } from '../../lib/abi/pages.js';
import { HvmParam, SAVED_HVM_PARAMS } from '../../lib/abi/hvm.js';
import type { Domain, Host } from '../../lib/host/host.js';
import { pageView } from '../../lib/host/pages.js';
import type { DeviceModelState } from '../../lib/toolstack/toolstack.js';

/** A guest on its way: what a stream would carry. */
export interface Image {
  readonly config: string;
  readonly policy: { readonly cpuid: Uint8Array; readonly msrs: Uint8Array };
  readonly tsc: Awaited<ReturnType<Domain['tscInfo']>>;
  readonly params: Map<number, bigint>;
  readonly pages: Map<number, Uint8Array>;
  context: Uint8Array;
  deviceModel: DeviceModelState | undefined;
}

export interface MoveOptions {
  /** Live passes before the guest is suspended; 0 is not live. Default 2. */
  readonly passes?: number;
  /** Called before each pass with the pages that it is going to copy. */
  readonly onPass?: (pfns: number[], final: boolean) => void | Promise<void>;
  /** Default true. */
  readonly deviceModelLogDirty?: boolean;
}

const BATCH = 1024;

async function copyPages(
  domain: Domain,
  pfns: readonly number[],
  pages: Map<number, Uint8Array>,
): Promise<void> {
  for (let at = 0; at < pfns.length; at += BATCH) {
    const batch = Float64Array.from(pfns.slice(at, at + BATCH));
    const types = new Uint8Array(batch.length);
    await domain.pageTypes(batch, types);
    const present = batch.filter((_, i) => types[i] === PageType.NOTAB);
    const mapping = await domain.mapFrames(present, 'read');
    present.forEach((pfn, i) => {
      if (mapping.errors[i] !== 0) throw new Error(`page ${pfn} cannot be mapped`);
      pages.set(pfn, pageView(mapping, i).slice());
    });
    mapping.release();
  }
}

function bitsOf(bitmap: Uint32Array, n: number): number[] {
  const out: number[] = [];
  for (let i = 0; i < n; i++) if (((bitmap[i >>> 5] as number) >>> (i & 31)) & 1) out.push(i);
  return out;
}

/** Takes a guest off its host; it stays there, suspended. */
export async function takeGuest(host: Host, domid: number, options: MoveOptions = {}): Promise<Image> {
  const { passes = 2, onPass, deviceModelLogDirty = true } = options;
  const { toolstack } = host;
  const domain = await host.openDomain(domid);
  const n = (await domain.maxGpfn()) + 1;
  const bitmap = new Uint32Array(Math.ceil(n / 32));
  const pages = new Map<number, Uint8Array>();
  const all = Array.from({ length: n }, (_, i) => i);
  if (passes > 0) {
    await toolstack.setDeviceModelLogDirty(domid, deviceModelLogDirty);
    await domain.enableLogDirty();
    let todo = all;
    for (let pass = 0; pass < passes; pass++) {
      await onPass?.(todo, false);
      await copyPages(domain, todo, pages);
      await domain.logDirty('clean', bitmap, n);
      todo = bitsOf(bitmap, n);
    }
    await onPass?.(todo, false);
    await copyPages(domain, todo, pages);
  }
  await toolstack.suspend(domid, { live: passes > 0 });
  let last = all;
  if (passes > 0) {
    await domain.logDirty('clean', bitmap, n, true);
    last = bitsOf(bitmap, n);
  }
  await onPass?.(last, true);
  await copyPages(domain, last, pages);
  await domain.disableLogDirty();
  await toolstack.setDeviceModelLogDirty(domid, false);
  const params = new Map<number, bigint>();
  for (const index of SAVED_HVM_PARAMS) {
    const value = await domain.hvmParam(index);
    if (value !== 0n) params.set(index, value);
  }
  return {
    config: await toolstack.domainConfig(domid),
    policy: await domain.cpuPolicy(),
    tsc: await domain.tscInfo(),
    params,
    pages,
    context: await domain.hvmContext(),
    deviceModel: await toolstack.deviceModelState(domid),
  };
}

/** Puts a guest onto a host, paused. */
export async function putGuest(host: Host, image: Image): Promise<number> {
  const { toolstack } = host;
  const domid = await toolstack.createDomain(image.config);
  const domain = await host.openDomain(domid);
  await domain.setCpuPolicy(image.policy);
  await toolstack.staticDataDone(domid, { cpuid: false, msr: false });
  const entries = [...image.pages];
  for (let at = 0; at < entries.length; at += BATCH) {
    const batch = entries.slice(at, at + BATCH);
    const pfns = Float64Array.from(batch, ([pfn]) => pfn);
    if ((await domain.populate(pfns)) !== batch.length) throw new Error('no memory');
    const mapping = await domain.mapFrames(pfns, 'write');
    batch.forEach(([, bytes], i) => pageView(mapping, i).set(bytes));
    mapping.release();
  }
  await domain.setTscInfo(image.tsc);
  const wiring = await toolstack.backendWiring(domid);
  for (const [index, value] of image.params) await domain.setHvmParam(index, value);
  await domain.setHvmParam(HvmParam.STORE_EVTCHN, BigInt(wiring.storeEvtchn));
  await domain.setHvmParam(HvmParam.CONSOLE_EVTCHN, BigInt(wiring.consoleEvtchn));
  await domain.setHvmContext(image.context);
  await toolstack.finishRestore(domid, {
    storeGfn: Number(image.params.get(HvmParam.STORE_PFN)),
    consoleGfn: Number(image.params.get(HvmParam.CONSOLE_PFN)),
  });
  if (image.deviceModel !== undefined) await toolstack.loadDeviceModelState(domid, image.deviceModel);
  return domid;
}

/** Waits until `done`. The test's own time limit ends it if that never happens. */
export async function until(done: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await done())) await new Promise((resolve) => setTimeout(resolve, 2));
}

/** FNV-1a over all pages in order of pfn, page numbers included. */
export function digest(pages: Iterable<readonly [number, Uint8Array]>): string {
  let h = 0x811c_9dc5;
  for (const [pfn, bytes] of [...pages].sort(([a], [b]) => a - b)) {
    h = Math.imul(h ^ pfn, 0x0100_0193);
    const words = new Uint32Array(bytes.slice().buffer, 0, PAGE_SIZE / 4);
    for (const word of words) h = Math.imul(h ^ word, 0x0100_0193);
  }
  return (h >>> 0).toString(16);
}
