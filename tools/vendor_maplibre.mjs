// Writes geo_assets/serve/page/maplibre/: MapLibre GL JS as its package ships it, without source maps.
//
// Run:  node tools/vendor_maplibre.mjs     (asks the npm registry that npm is configured with; Node 18 or newer)
//
// The package's own modules need no eval and no build step; its worker is a file beside it, so a strict content
// security policy holds. To update: change the version, run, and look at the pages of geo_assets_tests/browser.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const LIBRARY = { name: 'maplibre-gl', version: '6.17.0' };
const FILES = ['dist/maplibre-gl.mjs', 'dist/maplibre-gl-worker.mjs', 'dist/maplibre-gl.css', 'LICENSE.txt'];

const target = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', 'geo_assets', 'serve', 'page', 'maplibre');
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'vendor_maplibre_'));
try {
    fs.writeFileSync(path.join(scratch, 'package.json'), '{"private": true}');
    const wanted = `${LIBRARY.name}@${LIBRARY.version}`;
    execFileSync('npm', ['install', '--save-exact', '--ignore-scripts', '--no-audit', '--no-fund', wanted], { cwd: scratch, stdio: 'inherit' });
    const lock = JSON.parse(fs.readFileSync(path.join(scratch, 'package-lock.json'), 'utf8')).packages[`node_modules/${LIBRARY.name}`];

    fs.rmSync(target, { recursive: true, force: true });
    fs.mkdirSync(target, { recursive: true });
    const files = {};
    for (const file of FILES) {
        // Without its last line a browser's tools do not look for the source map, which stays behind.
        const text = fs.readFileSync(path.join(scratch, 'node_modules', LIBRARY.name, file), 'utf8').replace(/\n\/\/# sourceMappingURL=.*\s*$/, '\n');
        fs.writeFileSync(path.join(target, path.basename(file)), text);
        files[path.basename(file)] = { bytes: Buffer.byteLength(text), sha256: createHash('sha256').update(text).digest('hex') };
    }
    const packages = [{ ...LIBRARY, integrity: lock.integrity, license: lock.license }];
    fs.writeFileSync(path.join(target, 'VENDORED.json'), JSON.stringify({ files, packages, made_by: 'tools/vendor_maplibre.mjs' }, null, 2) + '\n');
    console.log(JSON.stringify(files, null, 2));
} finally {
    fs.rmSync(scratch, { recursive: true, force: true });
}
