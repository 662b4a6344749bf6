// Runs a job and prints its output: `AMQP_URL=amqp://… node call.js QUEUE KIND ARGS`.

import { Client } from './hopline.js';

const [queue, kind, args] = process.argv.slice(2);
const client = await Client.connect(process.env.AMQP_URL);
try {
  console.log(JSON.stringify(await client.call(queue, kind, JSON.parse(args))));
} catch (error) {
  console.error(`call.js: ${error.message}`);
  process.exitCode = 1;
} finally {
  await client.close();
}
