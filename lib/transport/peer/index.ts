/** Peers by their address. */
export { parsePeerAddress, peerAddressText, requirePrivate, type PeerAddress } from './address.js';
export { connectPeer, REMOTE_COMMAND, type ConnectOptions } from './connect.js';
export {
  listenForPeers,
  stdioPeer,
  type ListenOptions,
  type PeerListener,
  type PeerOrigin,
} from './listen.js';
export type { PeerTls } from './tls.js';
