/** OpenSSH from one of two joined hosts to the other. */
import fs from 'node:fs';

/**
 * Starts sshd at a host, with keys made for this scenario; it ends with the scenario.
 *
 * @param {import('./context.js').Context} t
 * @param {import('./host.js').Host} host where sshd listens, at the port of ssh
 * @returns {Promise<string>} the ssh command that gets there, from either host, and asks nothing
 */
export async function ssh(t, host) {
  const file = (/** @type {string} */ name) => t.shared(`ssh-${host.hostname}-${name}`);
  for (const name of ['server', 'user']) {
    await t.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', name, '-f', file(name)]);
  }
  const known = fs.readFileSync(file('server.pub'), 'utf8');
  fs.writeFileSync(file('known'), `${host.hostname},${host.address} ${known}`);

  await host.run(['mkdir', '-p', '-m', '755', '/run/sshd']);
  const options = {
    ListenAddress: host.address,
    HostKey: file('server'),
    AuthorizedKeysFile: file('user.pub'),
    // The folder that both hosts have is the build machine's, with its owners.
    StrictModes: 'no',
    UsePAM: 'no',
    PidFile: 'none',
  };
  const words = Object.entries(options).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  const sshd = host.start(['/usr/sbin/sshd', '-D', '-e', '-f', '/dev/null', ...words]);
  await sshd.waitFor(/^Server listening on /m);

  fs.writeFileSync(
    file('config'),
    `Host *\n  IdentityFile ${file('user')}\n  UserKnownHostsFile ${file('known')}\n  GlobalKnownHostsFile /dev/null\n`,
  );
  return `ssh -F ${file('config')}`;
}
