// Bundles a snippet as a project would: node build.mjs entry bundle
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { compileScript, parse } from "vue/compiler-sfc";

const vue = {
  name: "vue",
  setup({ onLoad }) {
    onLoad({ filter: /\.vue$/ }, async ({ path }) => {
      const { descriptor, errors } = parse(await readFile(path, "utf8"), { filename: path });
      if (errors.length) return { errors: errors.map(({ message: text }) => ({ text })) };
      return { contents: compileScript(descriptor, { id: path, inlineTemplate: true }).content };
    });
  },
};

const [entry, bundle] = process.argv.slice(2);
await build({
  entryPoints: [entry],
  outfile: bundle,
  bundle: true,
  format: "esm",
  jsx: "automatic",
  jsxDev: true,
  nodePaths: [fileURLToPath(new URL("node_modules", import.meta.url))],
  define: {
    "process.env.NODE_ENV": '"development"', // in which React's StrictMode does something
    __VUE_OPTIONS_API__: "true",
    __VUE_PROD_DEVTOOLS__: "false",
    __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: "false",
  },
  external: ["/pushlet.js"],
  plugins: [vue],
  logLevel: "error",
});
