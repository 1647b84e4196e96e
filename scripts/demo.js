/** `npm run demo`: what the demonstration needs, nothing more, and then the demonstration. Arguments are passed on. */
import { openly } from './steps.js';
import { checkNode, library, main, npmPackages } from './setup.js';

await main(async () => {
  checkNode();
  await npmPackages();
  await library();
  return openly([process.execPath, 'dist/cli/main.js', 'demo', ...process.argv.slice(2)]);
});
