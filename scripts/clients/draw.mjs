// Draw a picture with a client's own defaults: `draw.mjs CLIENT PROMPT`.
//
// OPENAI_BASE_URL and OPENAI_API_KEY name the cell. Prints what the client hands its user as the last
// line: an address or base64.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const { OPENAI_BASE_URL: baseURL, OPENAI_API_KEY: apiKey, CLIENTS } = process.env;
// The packages lie in a folder of their own, not beside this file.
const require = createRequire(`${CLIENTS}/package.json`);
const from = (name) => import(pathToFileURL(require.resolve(name)).href);

const clients = {
  async openai(prompt) {
    const { default: OpenAI } = await from('openai');
    return (await new OpenAI().images.generate({ prompt })).data[0].b64_json;
  },
  async langchain(prompt) {
    const { DallEAPIWrapper } = await from('@langchain/openai');
    return new DallEAPIWrapper({ baseUrl: baseURL }).invoke(prompt);
  },
  async ai(prompt) {
    const { generateImage } = await from('ai');
    const { createOpenAI } = await from('@ai-sdk/openai');
    const model = createOpenAI({ baseURL, apiKey }).image('gpt-image-1');
    return (await generateImage({ model, prompt })).image.base64;
  },
  async ai_dall_e_3(prompt) {
    const { generateImage } = await from('ai');
    const { createOpenAI } = await from('@ai-sdk/openai');
    const model = createOpenAI({ baseURL, apiKey }).image('dall-e-3');
    return (await generateImage({ model, prompt, size: '1024x1024' })).image.base64;
  },
  async ai_compatible(prompt) {
    const { generateImage } = await from('ai');
    const { createOpenAICompatible } = await from('@ai-sdk/openai-compatible');
    const provider = createOpenAICompatible({ name: 'zimage', baseURL, apiKey });
    return (await generateImage({ model: provider.imageModel('synthetic'), prompt })).image.base64;
  },
};

const [name, prompt] = process.argv.slice(2);
console.log(await clients[name](prompt));
