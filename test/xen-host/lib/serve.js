/**
 * `node serve.js ADDRESS:PORT COMMAND…`: starts the command for each TCP connection, which is its standard input and
 * output. Prints `serve: listening`, `serve: N began` and `serve: N ended CODE`; the command's standard error is its own.
 */
import { spawn } from 'node:child_process';
import net from 'node:net';
import { finished } from 'node:stream/promises';

const [where = '', program = '', ...args] = process.argv.slice(2);
const [host, port] = where.split(':');

let connections = 0;
const server = net.createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
  const number = ++connections;
  console.log(`serve: ${number} began`);
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  socket.pipe(child.stdin);
  child.stdout.pipe(socket);
  // Each end is told of by itself: the command that has gone, the connection that broke.
  for (const stream of [child.stdin, child.stdout]) stream.on('error', () => {});
  socket.on('error', (error) => {
    console.log(`serve: ${number} lost ${error.message}`);
    child.stdin.end();
  });
  child.once('error', (error) => {
    console.log(`serve: ${number} failed ${error.message}`);
    socket.destroy();
  });
  child.once('exit', (code, signal) => {
    console.log(`serve: ${number} ended ${signal ?? code}`);
    // What the command has written still has to leave; what it has not read is nobody's.
    finished(child.stdout)
      .catch(() => {})
      .then(() => socket.end(() => socket.destroySoon()));
  });
});
server.listen({ host, port: Number(port) }, () => console.log('serve: listening'));
