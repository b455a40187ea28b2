import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// `npm run dev` serves the page by itself and passes API calls to a running `./ops/up`.
export default defineConfig({
  plugins: [react()],
  build: { target: "es2022", sourcemap: false, assetsInlineLimit: 0 },
  server: { proxy: { "/api": "http://127.0.0.1:8080" } },
});
