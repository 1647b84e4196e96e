/**
 * xl's wire protocol in the words of the library's own: a `MigrationWire` for either end, so that one sender and one
 * receiver speak both. docs/reference/xl-wire.md has the whole picture.
 *
 * Frames that xl has no words for say nothing; what xl does not tell is left out of frames that come.
 */
import { randomUUID } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { PeerError } from '../../errors.js';
import type { ByteSink, ByteSource } from '../../transport/types.js';
import { frameName, FrameType, PROTOCOL_VERSIONS, protocolError, type Frame } from '../frames.js';
import type { MigrationWire } from '../wire.js';
import { XlLine } from './line.js';
import {
  encodeReport,
  statusText,
  XL_MESSAGES,
  XL_STATUS_FAIL,
  XL_STATUS_OK,
  type XlMessage,
} from './messages.js';

/** How xl is named where its own name and version would stand; it does not tell the latter. */
export const XL_SOFTWARE = 'xl';

/** Code of the reason for a report that is not 0. */
const REPORTED = 'ERR_XEN_XL';

abstract class XlWire implements MigrationWire {
  readonly protocol = 'xl';
  greeted = false;
  protected readonly line: XlLine;

  constructor(peer: Duplex, role: 'sender' | 'receiver') {
    this.line = new XlLine(peer, role);
  }

  /** xl has no versions: that of the frames which stand for its messages. */
  get version(): number {
    return this.greeted ? PROTOCOL_VERSIONS.highest : 0;
  }

  get source(): ByteSource {
    return this.line.source;
  }

  get sink(): ByteSink {
    return this.line.sink;
  }

  get lost(): boolean {
    return this.line.lost;
  }

  connected(signal: AbortSignal): Promise<void> {
    return this.line.connected(signal);
  }

  abstract send(frame: Frame): Promise<void>;

  trySend(frame: Frame): Promise<boolean> {
    return this.line.try(() => this.send(frame));
  }

  abstract receive(signal?: AbortSignal): Promise<Frame>;

  close(): Promise<void> {
    return this.line.close();
  }

  destroy(reason: unknown): void {
    this.line.destroy(reason);
  }

  protected say(message: XlMessage): Promise<void> {
    return this.sink.write([XL_MESSAGES[message]]);
  }

  protected wordless(frame: Frame): never {
    throw protocolError(`xl's protocol has no words for ${frameName(frame.type)}`);
  }
}

/** Speaks to `xl migrate-receive`, whose banner is still to be read. */
export class XlSenderWire extends XlWire {
  /** What is heard next. */
  #next: 'banner' | 'ready' | 'report' | 'end' = 'banner';
  #id = '';
  readonly #leavesPaused: boolean;

  /**
   * @param peer The connection to `xl migrate-receive`: standard input and output of the command that runs it
   * @param leavesPaused It was started with -p, as the caller says: xl is told, and tells, nothing of it
   */
  constructor(peer: Duplex, leavesPaused = false) {
    super(peer, 'sender');
    this.#leavesPaused = leavesPaused;
  }

  async send(frame: Frame): Promise<void> {
    switch (frame.type) {
      case FrameType.HELLO:
        this.#id = frame.offer.id;
        return;
      case FrameType.YOURS:
        return this.say('permission');
      case FrameType.RELEASED:
      case FrameType.FAILED:
        // The end of the connection says it.
        return;
      default:
        this.wordless(frame);
    }
  }

  async receive(signal?: AbortSignal): Promise<Frame> {
    const { line } = this;
    switch (this.#next) {
      case 'banner':
        await line.expect(
          'banner',
          'before it greeted: `xl migrate-receive` did not start there (the standard error of the command says why)',
          signal,
        );
        this.greeted = true;
        this.#next = 'ready';
        return {
          type: FrameType.READY,
          id: this.#id,
          version: this.version,
          software: XL_SOFTWARE,
          compression: undefined,
          host: undefined,
        };
      case 'ready':
        await line.expect('ready', 'instead of saying that it has the guest', signal);
        this.#next = 'report';
        return { type: FrameType.RESTORED, domid: undefined, bytes: undefined };
      case 'report':
        await line.expect('report', 'instead of saying whether the guest runs', signal);
        this.#next = 'end';
        return this.#reported(await line.byte('instead of saying whether the guest runs', signal), signal);
      case 'end':
        await line.end(signal);
        throw line.closed('after its last message');
    }
  }

  async #reported(status: number, signal: AbortSignal | undefined): Promise<Frame> {
    const { line } = this;
    if (status === XL_STATUS_OK) {
      const state = this.#leavesPaused ? 'paused' : 'running';
      return { type: FrameType.RUNNING, domid: undefined, state };
    }
    const why = `it could not start the guest (${statusText(status)})`;
    try {
      await line.expect('permission', 'instead of giving the guest back', signal);
    } catch (cause) {
      if (!(cause instanceof PeerError)) throw cause;
      throw new PeerError('ERR_XEN_PEER_LOST', `${line.who} said that ${why}, and then: ${cause.message}`, {
        cause,
      });
    }
    return { type: FrameType.FAILED, reason: { code: REPORTED, message: why }, gone: true };
  }
}

/** What `xl migrate` does not say of a migration. */
export interface XlReceiverOptions {
  /** The migration's id on this side. Default: a new one. */
  readonly id?: string | undefined;
}

/** Speaks to `xl migrate`, which waits for the banner and says nothing before it. */
export class XlReceiverWire extends XlWire {
  readonly #id: string;
  /** What is heard next. */
  #next: 'hello' | 'permission' | 'end' = 'hello';
  /** The sender knows that the guest is here: what it reads next is the report. */
  #ready = false;

  /** @param peer The connection to `xl migrate`: standard input and output of the command that it runs */
  constructor(peer: Duplex, options: XlReceiverOptions = {}) {
    super(peer, 'receiver');
    this.#id = options.id ?? randomUUID();
  }

  async send(frame: Frame): Promise<void> {
    switch (frame.type) {
      case FrameType.READY:
        return this.say('banner');
      case FrameType.RESTORED:
        this.#ready = true;
        return this.say('ready');
      case FrameType.RUNNING:
        return this.sink.write([encodeReport(XL_STATUS_OK)]);
      case FrameType.REFUSED:
        // The end of the connection says it.
        return;
      case FrameType.FAILED: {
        if (!this.#ready) return;
        const report = encodeReport(XL_STATUS_FAIL);
        // Only this lets xl resume its copy, so it is never said unless ours is gone.
        return this.sink.write(frame.gone ? [report, XL_MESSAGES.permission] : [report]);
      }
      default:
        this.wordless(frame);
    }
  }

  /**
   * False for a failure while the stream is under way: xl hears of it by the end of the connection alone, and would go
   * on sending memory for as long as that is taken.
   */
  override async trySend(frame: Frame): Promise<boolean> {
    const failure = frame.type === FrameType.REFUSED || frame.type === FrameType.FAILED;
    return failure && !this.#ready ? false : super.trySend(frame);
  }

  async receive(signal?: AbortSignal): Promise<Frame> {
    switch (this.#next) {
      case 'hello':
        this.greeted = true;
        this.#next = 'permission';
        return {
          type: FrameType.HELLO,
          offer: {
            id: this.#id,
            software: XL_SOFTWARE,
            name: undefined,
            hvm: undefined,
            memory: undefined,
            // Said to `xl migrate-receive` by its option -p, and here by an option of the receiver.
            paused: false,
            compression: [],
          },
        };
      case 'permission':
        await this.line.expect('permission', 'instead of handing the guest over', signal);
        this.#next = 'end';
        return { type: FrameType.YOURS, id: this.#id };
      case 'end':
        // xl ends when it has destroyed its copy, without a word.
        await this.line.end(signal);
        return { type: FrameType.RELEASED };
    }
  }
}
