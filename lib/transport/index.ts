/** Where streams come from and go to. */

export { compressionsHere, compressSink, decompressSource, type Compression } from './compress.js';
export { FILE_CHUNK, FileSink, FileSource, type FileSinkOptions, type FileSourceOptions } from './file.js';
export { MemorySink, MemorySource } from './memory.js';
export { openSink, openSource, type OpenSinkOptions, type OpenSourceOptions } from './open.js';
export {
  connectPeer,
  listenForPeers,
  parsePeerAddress,
  peerAddressText,
  stdioPeer,
  type ConnectOptions,
  type ListenOptions,
  type PeerAddress,
  type PeerListener,
  type PeerOrigin,
  type PeerTls,
} from './peer/index.js';
export {
  openConnection,
  SOCKET_HIGH_WATER,
  SocketSink,
  SocketSource,
  type Connection,
  type SocketSinkOptions,
  type SocketSourceOptions,
} from './socket.js';
export type { ByteSink, ByteSource } from './types.js';
