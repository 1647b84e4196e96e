/** `xen-migrate demo`: the main job on two simulated hosts, shown while it happens and proved afterwards. */
import { mkdtemp, rm } from 'node:fs/promises';
import type { Duplex } from 'node:stream';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { SimulatedHost } from '../host/simulated/host.js';
import { startMigrate, startReceive } from '../migrate/migrate.js';
import type { MigrateResult, ReceiveResult } from '../migrate/types.js';
import { connectPeer, listenForPeers } from '../transport/peer/index.js';
import { ExitCode, parseArguments, type Command, type CommandIo } from './command.js';
import { bytesText, countText, paintFor, rateText, speaksUnicode, timeText } from './format.js';
import { limitHelp, limitOptions, limitsFrom } from './limits.js';
import { LiveView, noView } from './live.js';
import { indent, printJson, printLines } from './print.js';
import { proofFacts, proved, proveGuest, type Proof } from './proof.js';
import { downtimeLines, factLines, roundsLines, type Fact } from './report.js';
import { createGuest, guestHelp, guestOptions, guestPlan, planText, type GuestPlan } from './simulated.js';

const MEMORY = '512M';
/** Slow enough to be watched, fast enough to wait for. */
const BANDWIDTH = '160M';
/** ms that the guest works before it is migrated. */
const WARM_UP = 300;

const help = `usage: xen-migrate demo [options]

Live-migrates a running guest between two simulated hosts, over a real socket and in the real Migration v2
stream, and shows it happening. Needs neither Xen nor the native addon. Afterwards the guest proves on the other
host that it runs and that its memory is whole.

The guest:
  --guest KIND          pvh, hvm, pv or pv32 (default pvh)
${guestHelp(MEMORY)}
The migration:
${limitHelp.replace('for no limit', `for no limit (default ${BANDWIDTH})`)}
  --json                print one JSON document instead of the report
  --help                print this text

Exit code 0 if and only if the guest arrived, runs and is whole, and nothing of it is left on the source.
`;

/** Everything that the demonstration found out. */
interface Story {
  readonly plan: GuestPlan;
  readonly sent: MigrateResult;
  readonly received: ReceiveResult;
  readonly proof: Proof;
  readonly leftAtSource: number;
}

async function run(argv: readonly string[], io: CommandIo, signal: AbortSignal): Promise<number> {
  const { values } = parseArguments(argv, {
    options: { guest: { type: 'string' }, ...guestOptions, ...limitOptions, json: { type: 'boolean' } },
  });
  const plan = guestPlan(values, values.guest ?? 'pvh', '--guest', MEMORY);
  const limits = limitsFrom(values, BANDWIDTH);
  const json = values.json === true;
  const paint = paintFor(io.stdout, io.env);
  if (!json) {
    const rate = limits.maxBytesPerSecond ?? 0;
    printLines(io.stdout, [
      `${paint.bold('Live migration')} between two simulated hosts`,
      '',
      `  ${planText(plan)}`,
      `  Unix socket${rate > 0 ? `, at most ${rateText(rate)} while the guest runs` : ''}`,
    ]);
  }
  const view = json ? noView : new LiveView(io, plan.memory / 4096);
  const story = await play(plan, limits, view, signal);
  const moves = plan.workload.kind !== 'idle';
  const facts: Fact[] = [
    ...proofFacts(story.proof, moves),
    { ok: story.leftAtSource === 0, text: 'nothing of it is left on the source' },
  ];
  const ok = story.proof.checkable && proved(facts);
  if (json) printJson(io.stdout, document(story, ok));
  else {
    const { sent } = story;
    printLines(io.stdout, [
      '',
      ...indent(roundsLines(sent.iterations, paint)),
      '',
      ...indent(downtimeLines(sent.downtime, paint)),
      '',
      `  ${paint.bold('in all')} ${bytesText(sent.bytes)} in ${timeText(sent.elapsed)}, ${countText(sent.pages)} pages`,
      '',
      ...indent(factLines(facts, paint, speaksUnicode(io.env))),
    ]);
  }
  return ok ? ExitCode.OK : ExitCode.FAILED;
}

async function play(
  plan: GuestPlan,
  limits: ReturnType<typeof limitsFrom>,
  view: Pick<LiveView, 'show' | 'clear'>,
  signal: AbortSignal,
): Promise<Story> {
  const cleanup: (() => Promise<unknown>)[] = [];
  try {
    const source = new SimulatedHost({ seed: 2 * plan.seed + 1 });
    cleanup.push(() => source.close());
    const destination = new SimulatedHost({ seed: 2 * plan.seed + 2, warmGuests: true });
    cleanup.push(() => destination.close());
    const guest = await createGuest(source, plan, 'demo');
    await sleep(WARM_UP, undefined, { signal });
    const [peer, from] = await socketPair(signal, cleanup);
    const receiving = startReceive(destination, { from, signal });
    const sending = startMigrate(source, {
      domid: guest.domid,
      peer,
      signal,
      ...limits,
      onProgress: view.show,
    });
    let sent: MigrateResult;
    let received: ReceiveResult;
    try {
      // Both have to settle before the hosts may go; the sender's error is the better one.
      const [there, here] = await Promise.allSettled([sending.result, receiving.result]);
      if (there.status === 'rejected') throw there.reason;
      if (here.status === 'rejected') throw here.reason;
      sent = there.value;
      received = here.value;
    } finally {
      view.clear();
    }
    const proof = await proveGuest(destination, received.domid, plan.workload.kind !== 'idle', signal);
    const leftAtSource = (await source.listDomains()).length;
    return { plan, sent, received, proof, leftAtSource };
  } finally {
    for (const step of cleanup.reverse()) await step();
  }
}

/** Two sockets that the kernel joins, through a Unix socket in a folder of their own. */
async function socketPair(
  signal: AbortSignal,
  cleanup: (() => Promise<unknown>)[],
): Promise<[Duplex, Duplex]> {
  const folder = await mkdtemp(path.join(tmpdir(), 'xen-migrate-'));
  cleanup.push(() => rm(folder, { recursive: true, force: true }));
  const address = path.join(folder, 'socket');
  let accept: ((peer: Duplex) => void) | undefined;
  const accepted = new Promise<Duplex>((resolve) => (accept = resolve));
  const listening = await listenForPeers(address, { signal }, (peer) => accept?.(peer));
  const peer = await connectPeer(address, { signal });
  const from = await accepted;
  cleanup.push(async () => {
    peer.destroy();
    from.destroy();
    await listening.close();
  });
  return [peer, from];
}

function document(story: Story, ok: boolean): object {
  const { plan, sent, received, proof, leftAtSource } = story;
  const { kind, memory, vcpus, workload, seed } = plan;
  return {
    ok,
    guest: { kind, memory, vcpus, workload: workload.kind, rate: workload.rate, seed },
    migration: {
      id: sent.id,
      elapsed: sent.elapsed,
      bytes: sent.bytes,
      pages: sent.pages,
      entriesByType: sent.entriesByType,
      iterations: sent.iterations,
      downtime: sent.downtime,
    },
    destination: { domid: received.domid, guestType: received.guestType, state: received.state },
    proof: { ...proof, leftAtSource },
  };
}

export const demo: Command = {
  name: 'demo',
  summary: 'live-migrates a running guest between two simulated hosts and shows it',
  help,
  run,
};
