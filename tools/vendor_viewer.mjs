// Rebuilds the vendored viewer page: node tools/vendor_viewer.mjs
// Installs the pinned npm packages into a temporary folder, renders the one-file page, and records what it is made of.
// The page holds the PlayCanvas engine too, so both licences are kept beside it.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const VIEWER = { name: '@playcanvas/supersplat-viewer', version: '1.36.2' };
const ENGINE = { name: 'playcanvas', version: '2.22.6' }; // the version that the viewer's bundle was built with

const target = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', 'geo_assets', 'splats', 'viewer_page');
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'vendor_viewer_'));
try {
    fs.writeFileSync(path.join(scratch, 'package.json'), '{"private": true}');
    const wanted = [VIEWER, ENGINE].map(p => `${p.name}@${p.version}`);
    execFileSync('npm', ['install', '--save-exact', '--ignore-scripts', '--no-audit', '--no-fund', ...wanted], { cwd: scratch, stdio: 'inherit' });
    const lock = JSON.parse(fs.readFileSync(path.join(scratch, 'package-lock.json'), 'utf8')).packages;

    const module = path.join(scratch, 'node_modules', VIEWER.name, 'dist', 'index.js');
    const { renderViewerHtml } = await import(pathToFileURL(module).href);
    const html = renderViewerHtml({ inlineCss: true, inlineJs: true });
    const page = `supersplat-${VIEWER.version}.html`;

    fs.mkdirSync(target, { recursive: true });
    for (const old of fs.readdirSync(target)) fs.rmSync(path.join(target, old));
    fs.writeFileSync(path.join(target, page), html);
    for (const [pkg, file] of [[VIEWER, 'LICENSE.supersplat-viewer'], [ENGINE, 'LICENSE.playcanvas']]) {
        fs.copyFileSync(path.join(scratch, 'node_modules', pkg.name, 'LICENSE'), path.join(target, file));
    }
    const packages = [VIEWER, ENGINE].map(p => ({ ...p, integrity: lock[`node_modules/${p.name}`].integrity, license: lock[`node_modules/${p.name}`].license }));
    const sha256 = createHash('sha256').update(html).digest('hex');
    const record = { page, sha256, packages, made_by: 'tools/vendor_viewer.mjs' };
    fs.writeFileSync(path.join(target, 'VENDORED.json'), JSON.stringify(record, null, 2) + '\n');
    console.log(`${page}: ${html.length} characters, sha256 ${sha256}`);
} finally {
    fs.rmSync(scratch, { recursive: true, force: true });
}
