// A viewer of 3D Gaussians on a canvas: sorted, alpha-blended ellipses in WebGL2, turned with the mouse.
//
// It reads what nodes/stream.py packs and renders as the pack's own renderers do: EWA projection with a low-pass filter of 0.3
// square pixels whose loss of opacity is compensated, contributions below 1/255 left out, on white.

const TEXELS = 4, WIDTH = 1024, MAGIC = 0x3153444d; // "MDS1"
const RAD = Math.PI / 180, NEAREST = 0.3, FARTHEST = 4; // zoom, in start distances

const VERTEX = `#version 300 es
precision highp float;
uniform highp sampler2D splats;
uniform mat3 axes;      // right, up and forward of the camera
uniform vec3 eye;
uniform vec2 size;      // pixels
uniform float focal;    // pixels
in uint index;
out vec2 place;         // in standard deviations
out vec4 color;
vec4 texel(int i) {
  int at = int(index) * ${TEXELS} + i;
  return texelFetch(splats, ivec2(at % ${WIDTH}, at / ${WIDTH}), 0);
}
void main() {
  vec4 mean = texel(0), a = texel(1), b = texel(2);
  vec3 p = transpose(axes) * (mean.xyz - eye);
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
  if (p.z < 0.01) return;
  mat3 world = mat3(a.x, a.y, a.z, a.y, a.w, b.x, a.z, b.x, b.y);
  vec2 limit = 1.3 * 0.5 * size / focal, t = clamp(p.xy / p.z, -limit, limit);
  mat3 m = transpose(axes) * world * axes;
  vec3 jx = vec3(1.0, 0.0, -t.x) * focal / p.z, jy = vec3(0.0, 1.0, -t.y) * focal / p.z;
  float xx = dot(jx, m * jx), xy = dot(jx, m * jy), yy = dot(jy, m * jy);
  float sharp = max(xx * yy - xy * xy, 0.0);
  xx += 0.3; yy += 0.3;
  color = vec4(texel(3).rgb, mean.w * sqrt(sharp / (xx * yy - xy * xy)));
  if (color.a < 1.0 / 255.0) return;
  float middle = 0.5 * (xx + yy), skew = 0.5 * (xx - yy), spread = length(vec2(skew, xy));
  vec2 longest = skew > 0.0 ? vec2(skew + spread, xy) : vec2(xy, spread - skew);
  vec2 axis = spread < 1e-6 * middle ? vec2(1.0, 0.0) : normalize(longest);
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  place = corner * min(sqrt(2.0 * log(255.0 * color.a)), 3.33);
  vec2 offset = place.x * sqrt(middle + spread) * axis + place.y * sqrt(max(middle - spread, 0.0)) * vec2(-axis.y, axis.x);
  gl_Position = vec4(2.0 * (p.xy / p.z * focal + offset) / size, 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec2 place;
in vec4 color;
out vec4 result;
void main() {
  float alpha = min(color.a * exp(-0.5 * dot(place, place)), 0.999);
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(color.rgb * alpha, alpha);
}`;

// Unpack a splat: its number of Gaussians, their positions, and the texture of positions, opacities, covariances and colours.
export function unpack(buffer) {
  const data = new DataView(buffer), count = data.getUint32(4, true);
  if (data.getUint32(0, true) !== MAGIC) throw new Error("This is no packed splat.");
  const number = i => data.getFloat32(8 + 4 * i, true), low = [0, 1, 2].map(number), span = [3, 4, 5].map(number);
  const [logLow, logSpan] = [number(6), number(7)], start = 40;
  const means = new Uint16Array(buffer, start, 3 * count), bytes = new Uint8Array(buffer, start + 6 * count);
  const [scales, colors, quats] = [bytes, bytes.subarray(3 * count), bytes.subarray(7 * count)];
  const positions = new Float32Array(3 * count), rows = Math.ceil((count * TEXELS) / WIDTH);
  const texels = new Float32Array(4 * WIDTH * Math.max(rows, 1));
  const variances = Float64Array.from({ length: 256 }, (_, code) => Math.exp(2 * (logLow + (logSpan * code) / 255)));
  const r = new Float64Array(9), v = new Float64Array(3); // rotation, variances along its columns
  const covariance = (j, k) => v[0] * r[j] * r[k] + v[1] * r[j + 1] * r[k + 1] + v[2] * r[j + 2] * r[k + 2];
  for (let i = 0, at = 0; i < count; i++, at += 4 * TEXELS) {
    for (let c = 0; c < 3; c++) {
      texels[at + c] = positions[3 * i + c] = low[c] + (span[c] * means[3 * i + c]) / 65535;
      texels[at + 12 + c] = colors[4 * i + c] / 255;
      v[c] = variances[scales[3 * i + c]];
    }
    texels[at + 3] = colors[4 * i + 3] / 255;
    let w = quats[4 * i] - 128, x = quats[4 * i + 1] - 128, y = quats[4 * i + 2] - 128, z = quats[4 * i + 3] - 128;
    const norm = Math.sqrt(w * w + x * x + y * y + z * z);
    w /= norm, x /= norm, y /= norm, z /= norm;
    r[0] = 1 - 2 * (y * y + z * z), r[1] = 2 * (x * y - w * z), r[2] = 2 * (x * z + w * y);
    r[3] = 2 * (x * y + w * z), r[4] = 1 - 2 * (x * x + z * z), r[5] = 2 * (y * z - w * x);
    r[6] = 2 * (x * z - w * y), r[7] = 2 * (y * z + w * x), r[8] = 1 - 2 * (x * x + y * y);
    texels[at + 4] = covariance(0, 0), texels[at + 5] = covariance(0, 3), texels[at + 6] = covariance(0, 6);
    texels[at + 7] = covariance(3, 3), texels[at + 8] = covariance(3, 6), texels[at + 9] = covariance(6, 6);
  }
  return { count, positions, texels };
}

export class SplatViewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl2", { antialias: false, alpha: false });
    if (!this.gl) throw new Error("This browser has no WebGL2.");
    this.camera = [0, 0, 2, 49.1];
    this.reset();
    this.prepare();
    canvas.addEventListener("webglcontextlost", event => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.prepare();
      if (this.splat) this.load(this.splat);
    });
    this.listen();
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(canvas);
  }

  // Show a packed splat; `camera` (elevation, azimuth, distance, vertical field of view) is where "front" is.
  show(buffer, camera) {
    if (camera) this.camera = camera;
    this.load(unpack(buffer));
  }

  load(splat) {
    const { gl } = this;
    this.splat = splat;
    this.order = new Uint32Array(splat.count);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, WIDTH, splat.texels.length / 4 / WIDTH, 0, gl.RGBA, gl.FLOAT, splat.texels);
    this.draw();
  }

  reset() {
    this.turn = [0, 0];
    this.zoom = 1;
  }

  remove() {
    this.observer.disconnect();
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  prepare() {
    const { gl } = this, program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(`The viewer's shaders: ${gl.getProgramInfoLog(program)}`);
    gl.useProgram(program);
    this.uniform = name => gl.getUniformLocation(program, name);
    const index = gl.getAttribLocation(program, "index");
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.enableVertexAttribArray(index);
    gl.vertexAttribIPointer(index, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(index, 1);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.clearColor(1, 1, 1, 1);
  }

  listen() {
    const { canvas } = this;
    const on = (name, action) => canvas.addEventListener(name, event => {
      event.stopPropagation(); // the graph would be dragged or zoomed
      event.preventDefault();
      action(event);
      this.draw();
    });
    on("pointerdown", event => canvas.setPointerCapture(event.pointerId));
    on("pointermove", event => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      const degrees = 180 / canvas.getBoundingClientRect().height;
      this.turn = [this.turn[0] + event.movementY * degrees, this.turn[1] - event.movementX * degrees];
    });
    on("pointerup", event => canvas.releasePointerCapture(event.pointerId));
    on("wheel", event => (this.zoom = Math.min(Math.max(this.zoom * Math.exp(event.deltaY / 1000), NEAREST), FARTHEST)));
    on("dblclick", () => this.reset());
  }

  draw() {
    const { canvas, gl, splat } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map(side => Math.round(side * devicePixelRatio));
    if (!width || !height) return;
    Object.assign(canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!splat?.count) return;
    const [elevation, azimuth, distance, fov] = this.camera;
    this.turn[0] = Math.min(Math.max(this.turn[0], -89 - elevation), 89 - elevation);
    const e = (elevation + this.turn[0]) * RAD, a = (azimuth + this.turn[1]) * RAD;
    const back = [Math.cos(e) * Math.sin(a), Math.sin(e), Math.cos(e) * Math.cos(a)], forward = back.map(x => -x);
    const right = [Math.cos(a), 0, -Math.sin(a)], up = [-Math.sin(e) * Math.sin(a), Math.cos(e), -Math.sin(e) * Math.cos(a)];
    const eye = back.map(x => x * distance * this.zoom);
    gl.uniformMatrix3fv(this.uniform("axes"), false, [...right, ...up, ...forward]);
    gl.uniform3fv(this.uniform("eye"), eye);
    gl.uniform2f(this.uniform("size"), width, height);
    // all of the square that a reference shows is seen in narrow canvases too
    gl.uniform1f(this.uniform("focal"), Math.min(width, height) / 2 / Math.tan((fov * RAD) / 2));
    this.sort(forward);
    gl.bufferData(gl.ARRAY_BUFFER, this.order, gl.DYNAMIC_DRAW);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, splat.count);
  }

  // Order the Gaussians from back to front, by counting depths in 65536 steps.
  sort([fx, fy, fz]) {
    const { positions, count } = this.splat, depths = new Float32Array(count), starts = new Uint32Array(65537);
    let low = Infinity, high = -Infinity;
    for (let i = 0; i < count; i++) {
      const depth = (depths[i] = fx * positions[3 * i] + fy * positions[3 * i + 1] + fz * positions[3 * i + 2]);
      if (depth < low) low = depth;
      if (depth > high) high = depth;
    }
    const scale = 65535 / Math.max(high - low, 1e-9), code = i => ((high - depths[i]) * scale) | 0;
    for (let i = 0; i < count; i++) starts[code(i) + 1]++;
    for (let i = 0; i < 65536; i++) starts[i + 1] += starts[i];
    for (let i = 0; i < count; i++) this.order[starts[code(i)]++] = i;
  }
}
