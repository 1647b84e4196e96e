/**
 * The protocol of libxl's save helper as libxl itself understands it (libxl_save_msgs_gen.pl, libxl_save_callout.c of
 * Xen 4.17): frames in, checked more strictly than libxl does, and the replies.
 *
 * Not the decoder of lib/helper/, on purpose: two readings of one protocol, and the stock helper speaks to this one too.
 *
 *     off size field
 *     0   2    length of what follows
 *     2   2    message number
 *     4   …    arguments, packed, little-endian; a string is u32 size with its NUL, then the bytes
 */

/**
 * @typedef {'u32' | 'i32' | 'u64' | 'string'} Kind
 * @typedef {object} MessageType
 * @property {string} name
 * @property {readonly ('save' | 'restore')[]} modes
 * @property {readonly (readonly [string, Kind])[]} arguments
 * @property {boolean} replied whether four bytes come back
 * @property {boolean} optional whether it may be sent only if its bit is in cbflags
 */

/** @type {readonly ('save' | 'restore')[]} */
const both = ['save', 'restore'];

/** @param {string} name @returns {MessageType} */
const callback = (name) => ({ name, modes: both, arguments: [], replied: true, optional: true });

/** @type {ReadonlyMap<number, MessageType>} */
export const messageTypes = new Map([
  [
    1,
    {
      name: 'log',
      modes: both,
      arguments: [
        ['level', 'u32'],
        ['errnoval', 'i32'],
        ['context', 'string'],
        ['text', 'string'],
      ],
      replied: false,
      optional: false,
    },
  ],
  [
    2,
    {
      name: 'progress',
      modes: both,
      arguments: [
        ['context', 'string'],
        ['doing', 'string'],
        ['done', 'u64'],
        ['total', 'u64'],
      ],
      replied: false,
      optional: false,
    },
  ],
  [3, callback('suspend')],
  [4, callback('postcopy')],
  [5, callback('checkpoint')],
  [6, callback('wait_checkpoint')],
  [
    7,
    {
      name: 'switch_qemu_logdirty',
      modes: ['save'],
      arguments: [
        ['domid', 'u32'],
        ['enable', 'u32'],
      ],
      replied: true,
      optional: true,
    },
  ],
  [
    8,
    {
      name: 'static_data_done',
      modes: ['restore'],
      arguments: [['missing', 'u32']],
      replied: true,
      optional: true,
    },
  ],
  [
    9,
    {
      name: 'restore_results',
      modes: ['restore'],
      arguments: [
        ['store_gfn', 'u64'],
        ['console_gfn', 'u64'],
      ],
      replied: false,
      optional: true,
    },
  ],
  [
    10,
    {
      name: 'complete',
      modes: both,
      arguments: [
        ['retval', 'i32'],
        ['errnoval', 'i32'],
      ],
      replied: true,
      optional: false,
    },
  ],
]);

/** cbflags that libxl gives for plain streams. */
export const plainCallbacks = { save: (1 << 3) | (1 << 7), restore: (1 << 8) | (1 << 9) };

/**
 * @typedef {Record<string, string | number>} Arguments
 * @typedef {{ readonly number: number, readonly type: MessageType, readonly arguments: Arguments }} Message
 */

/** What libxl would have dropped without a word, or died of. */
export class ProtocolError extends Error {}

/** Takes bytes of the helper's stdout, gives messages. */
export class MessageReader {
  #rest = Buffer.alloc(0);
  #mode;
  #callbacks;

  /** @param {'save' | 'restore'} mode @param {number} callbacks */
  constructor(mode, callbacks) {
    this.#mode = mode;
    this.#callbacks = callbacks;
  }

  /** Bytes of a message whose rest has not come. */
  get pending() {
    return this.#rest.length;
  }

  /** @param {Buffer} bytes @returns {Message[]} */
  push(bytes) {
    this.#rest = Buffer.concat([this.#rest, bytes]);
    /** @type {Message[]} */
    const messages = [];
    while (this.#rest.length >= 2) {
      const end = 2 + this.#rest.readUInt16LE(0);
      if (this.#rest.length < end) break;
      messages.push(this.#decode(this.#rest.subarray(2, end)));
      this.#rest = this.#rest.subarray(end);
    }
    return messages;
  }

  /** @param {Buffer} body @returns {Message} */
  #decode(body) {
    if (body.length < 2)
      throw new ProtocolError(`a message of ${body.length} bytes: ${body.toString('hex')}`);
    const number = body.readUInt16LE(0);
    const type = messageTypes.get(number);
    if (type === undefined)
      throw new ProtocolError(`message number ${number}: ${body.toString('hex', 0, 64)}`);
    if (!type.modes.includes(this.#mode)) throw new ProtocolError(`${type.name} in a ${this.#mode}`);
    if (type.optional && (this.#callbacks & (1 << number)) === 0)
      throw new ProtocolError(`${type.name}, which cbflags ${this.#callbacks} does not ask for`);
    /** @type {Arguments} */
    const values = {};
    let at = 2;
    const take = (/** @type {number} */ size) => {
      if (at + size > body.length) throw new ProtocolError(`${type.name}: ends in an argument`);
      const bytes = body.subarray(at, at + size);
      at += size;
      return bytes;
    };
    for (const [name, kind] of type.arguments) {
      if (kind === 'u32') values[name] = take(4).readUInt32LE();
      else if (kind === 'i32') values[name] = take(4).readInt32LE();
      else if (kind === 'u64') values[name] = Number(take(8).readBigUInt64LE());
      else values[name] = string(type, take(take(4).readUInt32LE()));
    }
    if (at !== body.length) throw new ProtocolError(`${type.name}: ${body.length - at} bytes too many`);
    return { number, type, arguments: values };
  }
}

/** @param {MessageType} type @param {Buffer} bytes */
function string(type, bytes) {
  if (bytes.indexOf(0) !== bytes.length - 1)
    throw new ProtocolError(`${type.name}: a string without one NUL at its end: ${bytes.toString('latin1')}`);
  return bytes.toString('utf8', 0, bytes.length - 1);
}

/** @param {number} value */
export function reply(value) {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
}
