// Submits a job over AMQP and prints its id: `AMQP_URL=amqp://… node producer.js QUEUE KIND ARGS [DELAY]`.

import { Client } from './hopline.js';

const [queue, kind, args, delay = '0'] = process.argv.slice(2);
const client = await Client.connect(process.env.AMQP_URL);
try {
  console.log(await client.submit(queue, kind, JSON.parse(args), { delay: Number(delay) }));
} catch (error) {
  console.error(`producer.js: ${error.message}`);
  process.exitCode = 1;
} finally {
  await client.close();
}
