// The CUDA splat renderer: projection, blending, and the derivatives of both.
//
// There are no per-tile lists, whose lengths the CPU would have to read back: each tile's block goes through its view's
// Gaussians in order of depth and queues those whose rectangle of tiles contains it. All sizes are fixed.
//
// The equations are those of projection.py and splat_torch.py; the derivative of rotation and covariance follows gsplat
// (Apache-2.0). Constants (NEAR, FAR, BLUR, ...) come as macros from projection.py. V views, N Gaussians; a pair is a
// Gaussian in a view, v * N + g. Every pair has a row of 12 floats:
//   mean x, mean y, a/2, b | c/2, opacity, largest sigma with alpha >= 1/255, depth | r, g, b, unused
// and a row of MOMENTS gradients that blending sums up.

#define TILE 16
#define THREADS 256
#define ROW 12
#define MOMENTS 10
#define FULL 0xffffffffu

struct Vec { float x, y, z; };

__device__ inline Vec vec(const float* p) { return {p[0], p[1], p[2]}; }
__device__ inline float dot(Vec u, Vec v) { return u.x * v.x + u.y * v.y + u.z * v.z; }
__device__ inline Vec mix(float a, Vec u, float b, Vec v) { return {a * u.x + b * v.x, a * u.y + b * v.y, a * u.z + b * v.z}; }
__device__ inline Vec scaled(Vec u, Vec s) { return {u.x * s.x, u.y * s.y, u.z * s.z}; }

struct Mat { Vec r0, r1, r2; };  // by rows

__device__ inline Vec row_times(Vec u, const Mat& m) { return mix(1.f, mix(u.x, m.r0, u.y, m.r1), u.z, m.r2); }

struct Quat { float w, x, y, z, n; };  // unit quaternion and 1 / |q|

__device__ inline Quat unit(const float* q) {
  const float n = 1.f / sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
  return {q[0] * n, q[1] * n, q[2] * n, q[3] * n, n};
}

__device__ inline Mat rotation(Quat q) {
  return {{1.f - 2.f * (q.y * q.y + q.z * q.z), 2.f * (q.x * q.y - q.w * q.z), 2.f * (q.x * q.z + q.w * q.y)},
          {2.f * (q.x * q.y + q.w * q.z), 1.f - 2.f * (q.x * q.x + q.z * q.z), 2.f * (q.y * q.z - q.w * q.x)},
          {2.f * (q.x * q.z - q.w * q.y), 2.f * (q.y * q.z + q.w * q.x), 1.f - 2.f * (q.x * q.x + q.y * q.y)}};
}

// A Gaussian's position and shape in a view: B = J R M by rows, its clamped slopes and their inputs.
struct Seen { Mat r; float fx, fy, cx, cy, z, rz, ux, uy, tx, ty; Vec a0, a1, b0, b1; };

__device__ inline float clamp_slope(float slope, float centre, float size, float focal) {
  const float margin = MARGIN * size / focal;
  return fminf(fmaxf(slope, -(centre / focal + margin)), (size - centre) / focal + margin);
}

__device__ inline Seen look(Vec p, const Mat& m, const float* V, const float* K, int W, int H) {
  Seen s;
  s.r = {vec(V), vec(V + 4), vec(V + 8)};
  s.fx = K[0]; s.fy = K[4]; s.cx = K[2]; s.cy = K[5];
  s.z = dot(s.r.r2, p) + V[11];
  s.rz = 1.f / s.z;
  s.ux = (dot(s.r.r0, p) + V[3]) * s.rz;
  s.uy = (dot(s.r.r1, p) + V[7]) * s.rz;
  s.tx = clamp_slope(s.ux, s.cx, W, s.fx);
  s.ty = clamp_slope(s.uy, s.cy, H, s.fy);
  s.a0 = mix(s.fx * s.rz, s.r.r0, -s.fx * s.tx * s.rz, s.r.r2);
  s.a1 = mix(s.fy * s.rz, s.r.r1, -s.fy * s.ty * s.rz, s.r.r2);
  s.b0 = row_times(s.a0, m);
  s.b1 = row_times(s.a1, m);
  return s;
}

__device__ inline void tile_range(float mean, float extent, int tiles, int* first, int* last) {
  *first = (int)fminf(fmaxf(floorf((mean - extent) / TILE), 0.f), (float)tiles);
  *last = (int)fmaxf(fminf(floorf((mean + extent) / TILE) + 1.f, (float)tiles), 0.f);
}

// One thread per pair. Writes rows of visible pairs, radii [V,N,2], the tiles that a pair covers [V,N] (columns x to y, rows
// z to w, ends excluded; zeros for none) and keys [V,N] that sort by view, then by depth (the bits of positive floats sort like
// the floats), invisible pairs last. Every comparison is written so that it is false for NaN.
extern "C" __global__ void project(
    int pairs, int N, int W, int H, int antialiased, const float* means, const float* quats, const float* scales,
    const float* opacities, const float* colors, const float* viewmats, const float* Ks, float* rows, int* radii,
    ushort4* touched, long long* keys) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pairs) return;
  const int v = i / N, g = i - v * N;
  const long long key = (long long)v << 32;
  radii[2 * i] = radii[2 * i + 1] = 0;
  touched[i] = {0, 0, 0, 0};
  keys[i] = key | 0x7fffffff;
  const Mat q = rotation(unit(quats + 4 * g));
  const Vec s = vec(scales + 3 * g), color = vec(colors + 3 * g);
  const Seen e = look(vec(means + 3 * g), {scaled(q.r0, s), scaled(q.r1, s), scaled(q.r2, s)}, viewmats + 16 * v, Ks + 9 * v, W, H);
  if (!(e.z > NEAR && e.z < FAR)) return;
  float xx = dot(e.b0, e.b0), yy = dot(e.b1, e.b1);
  const float xy = dot(e.b0, e.b1);
  const Vec c = {e.b0.y * e.b1.z - e.b0.z * e.b1.y, e.b0.z * e.b1.x - e.b0.x * e.b1.z, e.b0.x * e.b1.y - e.b0.y * e.b1.x};
  const float sharp = dot(c, c), det = sharp + BLUR * (xx + yy) + BLUR * BLUR;
  const float o = antialiased ? opacities[g] * sqrtf(sharp / det) : opacities[g];
  const float shade = fabsf(color.x) + fabsf(color.y) + fabsf(color.z);
  if (!(det <= FLOAT_MAX && o >= ALPHA_MIN && o <= FLOAT_MAX && shade <= FLOAT_MAX)) return;
  xx += BLUR;
  yy += BLUR;
  const float limit = logf(o / ALPHA_MIN), deviations = fminf(sqrtf(2.f * limit), MAX_EXTENT);
  const float ex = deviations * sqrtf(xx), ey = deviations * sqrtf(yy), rx = ceilf(ex), ry = ceilf(ey);
  const float mx = e.fx * e.ux + e.cx, my = e.fy * e.uy + e.cy;
  if (!(ex > 0.f && ey > 0.f && mx + rx > 0.f && mx - rx < W && my + ry > 0.f && my - ry < H)) return;
  radii[2 * i] = (int)fminf(rx, MAX_RADIUS);
  radii[2 * i + 1] = (int)fminf(ry, MAX_RADIUS);
  int x0, x1, y0, y1;
  tile_range(mx, ex, (W + TILE - 1) / TILE, &x0, &x1);
  tile_range(my, ey, (H + TILE - 1) / TILE, &y0, &y1);
  if (x0 >= x1 || y0 >= y1) return;
  touched[i] = {(unsigned short)x0, (unsigned short)x1, (unsigned short)y0, (unsigned short)y1};
  keys[i] = key | __float_as_int(e.z);
  float* row = rows + (long long)ROW * i;
  row[0] = mx; row[1] = my; row[2] = 0.5f * yy / det; row[3] = -xy / det; row[4] = 0.5f * xx / det;
  row[5] = o; row[6] = fminf(limit, 0.5f * MAX_EXTENT * MAX_EXTENT); row[7] = e.z;
  row[8] = color.x; row[9] = color.y; row[10] = color.z; row[11] = 0.f;
}

// A warp covers 8 x 4 pixels rather than 16 x 2: more of its pixels share their Gaussians.
struct Pixel { int x, y, thread; bool inside; long long index; };

__device__ inline Pixel my_pixel(int W, int H) {
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  Pixel p;
  p.thread = t;
  p.x = blockIdx.x * TILE + (warp % 2) * 8 + lane % 8;
  p.y = blockIdx.y * TILE + (warp / 2) * 4 + lane / 8;
  p.inside = p.x < W && p.y < H;
  p.index = ((long long)blockIdx.z * H + p.y) * W + p.x;
  return p;
}

// Exponent of a Gaussian at a pixel. Rounded alike in both passes, whatever else the compiler fuses: they must blend the same
// Gaussians, else the backward pass divides by factors that the forward pass did not multiply with.
__device__ inline float exponent(float4 shape, float c, float dx, float dy) {
  return fmaf(fmaf(shape.z, dx, shape.w * dy), dx, c * dy * dy);
}

// Ring buffer with indices, in order of depth, of Gaussians that cover a block's tile and are not blended yet.
struct Queue {
  int places[2 * THREADS], votes[2][THREADS / 32];
  __device__ inline int& at(int i) { return places[i % (2 * THREADS)]; }
};

__device__ inline bool touches_my_tile(ushort4 tiles) {
  return tiles.x <= blockIdx.x && blockIdx.x < tiles.y && tiles.z <= blockIdx.y && blockIdx.y < tiles.w;
}

// The threads of a block vote, with alternating buffers 0 and 1, which of them have found a Gaussian; after a barrier each
// appends its own to the queue, in the order of the threads. Returns the queue's new end. Two buffers avoid a race.
__device__ inline void vote(Queue& queue, int turn, int t, bool found) {
  const unsigned votes = __ballot_sync(FULL, found);
  if (t % 32 == 0) queue.votes[turn][t / 32] = votes;
}

__device__ inline int enter(Queue& queue, int turn, int t, bool found, int place, int end) {
  int mine = end;
  for (int warp = 0; warp < THREADS / 32; ++warp) {
    const unsigned votes = queue.votes[turn][warp];
    if (warp < t / 32) mine += __popc(votes);
    if (warp == t / 32) mine += __popc(votes & ((1u << t % 32) - 1u));
    end += __popc(votes);
  }
  if (found) queue.at(mine) = place;
  return end;
}

__device__ inline void fetch(float4* batch, const float4* rows, long long pair, int t) {
  batch[3 * t] = rows[3 * pair];
  batch[3 * t + 1] = rows[3 * pair + 1];
  batch[3 * t + 2] = rows[3 * pair + 2];
}

// One block per tile of a view. order [V,N]: a view's pairs by depth; touched [V,N]: their tiles, in the same order.
// last [V,H,W] and remaining [V,H,W]: one past the index of the last blended Gaussian, and the final transmittance; the
// backward pass starts from them.
extern "C" __global__ void raster_forward(
    int W, int H, int N, const float4* rows, const long long* order, const ushort4* touched, const float* background, float* rgb,
    float* alpha, float* depth, int* last, float* remaining) {
  __shared__ float4 batch[3 * THREADS];
  __shared__ Queue queue;
  const Pixel p = my_pixel(W, H);
  order += (long long)N * blockIdx.z;
  touched += (long long)N * blockIdx.z;
  bool done = !p.inside;
  float T = 1.f, r = 0.f, g = 0.f, b = 0.f, d = 0.f;
  int stop = 0, begin = 0, end = 0;
  for (int first = 0; first < N; first += THREADS) {
    const int place = first + p.thread, turn = first / THREADS % 2;
    const bool found = place < N && touches_my_tile(touched[place]);
    vote(queue, turn, p.thread, found);
    if (__syncthreads_count(done) == THREADS) break;
    end = enter(queue, turn, p.thread, found, place, end);
    const int enough = first + THREADS < N ? THREADS : 1;
    while (end - begin >= enough) {
      const int count = min(end - begin, THREADS);
      __syncthreads();  // the queue is written and the old batch read
      if (p.thread < count) fetch(batch, rows, order[queue.at(begin + p.thread)], p.thread);
      __syncthreads();
      for (int k = 0; k < count && !done; ++k) {
        const float4 shape = batch[3 * k], more = batch[3 * k + 1];
        const float dx = p.x + 0.5f - shape.x, dy = p.y + 0.5f - shape.y;
        const float sigma = exponent(shape, more.x, dx, dy);
        if (!(sigma <= more.z)) continue;
        const float al = fminf(more.y * __expf(-sigma), ALPHA_MAX), after = T * (1.f - al);
        if (after <= T_MIN) {
          done = true;
          break;
        }
        const float4 color = batch[3 * k + 2];
        const float w = al * T;
        r += w * color.x; g += w * color.y; b += w * color.z; d += w * more.w;
        T = after;
        stop = queue.at(begin + k) + 1;
      }
      begin += count;
    }
  }
  if (!p.inside) return;
  const float* back = background + 3 * blockIdx.z;
  rgb[3 * p.index] = r + T * back[0];
  rgb[3 * p.index + 1] = g + T * back[1];
  rgb[3 * p.index + 2] = b + T * back[2];
  alpha[p.index] = 1.f - T;
  depth[p.index] = d;
  last[p.index] = stop;
  remaining[p.index] = T;
}

// One halving of a warp's sums: lanes with the bit keep v[half ..], the others v[.. half), each adding its partner's.
template <int half>
__device__ inline void halve(float* v, int lane, int bit) {
  const bool upper = lane & bit;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float other = __shfl_xor_sync(FULL, upper ? v[i] : v[i + half], bit);
    v[i] = (upper ? v[i + half] : v[i]) + other;
  }
}

// Adds the sum of v[0 .. 10) over the warp to out[0 .. 10): 12 shuffles instead of 50, and one atomic instruction, because
// each halving splits the values, not only the lanes. v has 10 values.
__device__ inline void add_warp_sums(float* v, float* out, int lane) {
  halve<5>(v, lane, 16);
  v[5] = 0.f;
  halve<3>(v, lane, 8);
  v[3] = 0.f;
  halve<2>(v, lane, 4);
  halve<1>(v, lane, 2);
  v[0] += __shfl_xor_sync(FULL, v[0], 1);
  const int b = (lane >> 3) & 1, local = ((lane >> 2) & 1) * 2 + ((lane >> 1) & 1);
  if (!(lane & 1) && local < (b ? 2 : 3)) atomicAdd(out + (lane >> 4) * 5 + b * 3 + local, v[0]);
}

// One block per tile of a view, back to front: each pixel's T is recovered by the same factors that produced it, which keeps
// float32's precision behind nearly opaque Gaussians. moments [V,N,10] += sums over the pixels of w v_rgb (3), w v_depth,
// s, s dx, s dy, s dx^2, s dx dy, s dy^2 with s = dL/dsigma. With f = c . v_rgb + z v_depth and the rest behind it,
// R = sum of later w f + T_final (background . v_rgb - v_alpha): s = alpha (R / (1 - alpha) - T f).
extern "C" __global__ void raster_backward(
    int W, int H, int N, const float4* rows, const long long* order, const ushort4* touched, const float* background,
    const int* last, const float* remaining, const float* v_rgb, const float* v_alpha, const float* v_depth, float* moments) {
  __shared__ float4 batch[3 * THREADS];
  __shared__ int pair[THREADS];
  __shared__ Queue queue;
  const Pixel p = my_pixel(W, H);
  const int lane = p.thread % 32;
  order += (long long)N * blockIdx.z;
  touched += (long long)N * blockIdx.z;
  float T = 0.f, R = 0.f, vr = 0.f, vg = 0.f, vb = 0.f, vd = 0.f;
  int stop = 0, begin = 0, end = 0;
  if (p.inside) {
    const float* back = background + 3 * blockIdx.z;
    vr = v_rgb[3 * p.index];
    vg = v_rgb[3 * p.index + 1];
    vb = v_rgb[3 * p.index + 2];
    vd = v_depth[p.index];
    T = remaining[p.index];
    R = T * (vr * back[0] + vg * back[1] + vb * back[2] - v_alpha[p.index]);
    stop = last[p.index];
  }
  // The last Gaussian of the warp and of the block: those behind it are skipped.
  int reach = stop, deepest = 0;
  for (int bit = 16; bit; bit /= 2) reach = max(reach, __shfl_xor_sync(FULL, reach, bit));
  if (lane == 0) queue.votes[1][p.thread / 32] = reach;
  __syncthreads();
  for (int warp = 0; warp < THREADS / 32; ++warp) deepest = max(deepest, queue.votes[1][warp]);
  for (int until = deepest, turn = 0; until > 0; until -= THREADS, turn = 1 - turn) {
    const int place = until - 1 - p.thread;
    const bool found = place >= 0 && touches_my_tile(touched[place]);
    vote(queue, turn, p.thread, found);
    __syncthreads();
    end = enter(queue, turn, p.thread, found, place, end);
    const int enough = until > THREADS ? THREADS : 1;
    while (end - begin >= enough) {
      const int count = min(end - begin, THREADS);
      __syncthreads();  // the queue is written and the old batch read
      if (p.thread < count) {
        pair[p.thread] = order[queue.at(begin + p.thread)];
        fetch(batch, rows, pair[p.thread], p.thread);
      }
      __syncthreads();
      for (int k = 0; k < count; ++k) {
        const int met_at = queue.at(begin + k);
        if (met_at >= reach) continue;
        const float4 shape = batch[3 * k], more = batch[3 * k + 1];
        const float dx = p.x + 0.5f - shape.x, dy = p.y + 0.5f - shape.y;
        const float sigma = exponent(shape, more.x, dx, dy);
        const bool met = met_at < stop && sigma <= more.z;
        if (!__any_sync(FULL, met)) continue;
        float w = 0.f, s = 0.f;
        if (met) {
          const float4 color = batch[3 * k + 2];
          const float free = more.y * __expf(-sigma), al = fminf(free, ALPHA_MAX), grow = 1.f / (1.f - al);
          const float f = color.x * vr + color.y * vg + color.z * vb + more.w * vd;
          T *= grow;
          w = al * T;
          if (free < ALPHA_MAX) s = al * (R * grow - T * f);
          R += w * f;
        }
        float v[MOMENTS] = {w * vr, w * vg, w * vb, w * vd, s, s * dx, s * dy, s * dx * dx, s * dx * dy, s * dy * dy};
        add_warp_sums(v, moments + (long long)MOMENTS * pair[k], lane);
      }
      begin += count;
    }
  }
}

// One thread per Gaussian backpropagates its moments of all views through the projection: no atomics, fixed order of sums.
// v_mean2d = -Q sum(s d), v_Q = sum(s d d^T) / 2, v_S2 = -Q v_Q Q, v_B = 2 v_S2 B, v_A = v_B M^T, v_M = A^T v_B; the
// clamped Jacobian depends on z only.
extern "C" __global__ void project_backward(
    int N, int V, int W, int H, int antialiased, const float* means, const float* quats, const float* scales,
    const float* opacities, const float* viewmats, const float* Ks, const float* rows, const ushort4* touched, const float* moments,
    float* v_means, float* v_quats, float* v_scales, float* v_opacities, float* v_colors, float* v_means2d) {
  const int g = blockIdx.x * blockDim.x + threadIdx.x;
  if (g >= N) return;
  const Quat u = unit(quats + 4 * g);
  const Mat q = rotation(u);
  const Vec p = vec(means + 3 * g), size = vec(scales + 3 * g), none = {0.f, 0.f, 0.f};
  const Mat m = {scaled(q.r0, size), scaled(q.r1, size), scaled(q.r2, size)};
  Vec v_mean = none, v_color = none;
  Mat vm = {none, none, none};
  float v_opacity = 0.f;
  bool seen = false;
  for (int v = 0; v < V; ++v) {
    const int i = v * N + g;
    v_means2d[2 * i] = v_means2d[2 * i + 1] = 0.f;
    if (touched[i].y == 0) continue;
    seen = true;
    const float *t = moments + (long long)MOMENTS * i, *row = rows + (long long)ROW * i;
    v_color = mix(1.f, v_color, 1.f, vec(t));
    const float a = 2.f * row[2], b = row[3], c = 2.f * row[4], o = row[5];
    const float gx = -(a * t[5] + b * t[6]), gy = -(b * t[5] + c * t[6]);
    v_means2d[2 * i] = gx;
    v_means2d[2 * i + 1] = gy;
    const float q00 = 0.5f * t[7], q01 = 0.5f * t[8], q11 = 0.5f * t[9];
    const float t00 = a * q00 + b * q01, t01 = a * q01 + b * q11, t10 = b * q00 + c * q01, t11 = b * q01 + c * q11;
    float w00 = -(t00 * a + t01 * b), w01 = -(t00 * b + t01 * c), w11 = -(t10 * b + t11 * c);
    float vo = -t[4] / o;
    if (antialiased) {
      // k = sqrt(|S0| / |S2|), S2 = S0 + blur I: dk = ((1 - k^2) Q - blur |Q| I) dS / 2k
      const float k = o / opacities[g], rest = 1.f - k * k, shrink = BLUR * (a * c - b * b);
      const float h = 0.5f * vo * opacities[g] / k;
      w00 += h * (rest * a - shrink);
      w01 += h * rest * b;
      w11 += h * (rest * c - shrink);
      vo *= k;
    }
    v_opacity += vo;

    const Seen e = look(p, m, viewmats + 16 * v, Ks + 9 * v, W, H);
    const Vec d0 = mix(2.f * w00, e.b0, 2.f * w01, e.b1), d1 = mix(2.f * w01, e.b0, 2.f * w11, e.b1);
    vm.r0 = mix(1.f, vm.r0, 1.f, mix(e.a0.x, d0, e.a1.x, d1));
    vm.r1 = mix(1.f, vm.r1, 1.f, mix(e.a0.y, d0, e.a1.y, d1));
    vm.r2 = mix(1.f, vm.r2, 1.f, mix(e.a0.z, d0, e.a1.z, d1));
    const Vec e0 = {dot(d0, m.r0), dot(d0, m.r1), dot(d0, m.r2)}, e1 = {dot(d1, m.r0), dot(d1, m.r1), dot(d1, m.r2)};
    const float fxz = e.fx * e.rz, fyz = e.fy * e.rz;
    const float j00 = dot(e0, e.r.r0), j02 = dot(e0, e.r.r2), j11 = dot(e1, e.r.r1), j12 = dot(e1, e.r.r2);
    const bool free_x = e.tx == e.ux, free_y = e.ty == e.uy;
    const float vx = fxz * gx - (free_x ? fxz * e.rz * j02 : 0.f), vy = fyz * gy - (free_y ? fyz * e.rz * j12 : 0.f);
    float vz = t[3] - fxz * e.ux * gx - fyz * e.uy * gy - (fxz * j00 + fyz * j11) * e.rz;
    vz += (free_x ? 2.f : 1.f) * fxz * e.tx * e.rz * j02 + (free_y ? 2.f : 1.f) * fyz * e.ty * e.rz * j12;
    v_mean = mix(1.f, v_mean, 1.f, row_times({vx, vy, vz}, e.r));
  }
  Vec v_scale = none;
  Quat w = {0.f, 0.f, 0.f, 0.f, 0.f};
  if (seen) {  // else 0 * NaN of a non-finite Gaussian would give NaN
    v_scale = mix(1.f, mix(1.f, scaled(vm.r0, q.r0), 1.f, scaled(vm.r1, q.r1)), 1.f, scaled(vm.r2, q.r2));
    const Vec a = scaled(vm.r0, size), b = scaled(vm.r1, size), c = scaled(vm.r2, size);
    w.w = 2.f * (u.x * (c.y - b.z) + u.y * (a.z - c.x) + u.z * (b.x - a.y));
    w.x = 2.f * (-2.f * u.x * (b.y + c.z) + u.y * (b.x + a.y) + u.z * (c.x + a.z) + u.w * (c.y - b.z));
    w.y = 2.f * (u.x * (b.x + a.y) - 2.f * u.y * (a.x + c.z) + u.z * (c.y + b.z) + u.w * (a.z - c.x));
    w.z = 2.f * (u.x * (c.x + a.z) + u.y * (c.y + b.z) - 2.f * u.z * (a.x + b.y) + u.w * (b.x - a.y));
    const float along = w.w * u.w + w.x * u.x + w.y * u.y + w.z * u.z;
    w = {(w.w - along * u.w) * u.n, (w.x - along * u.x) * u.n, (w.y - along * u.y) * u.n, (w.z - along * u.z) * u.n, 0.f};
  }
  const float means_out[3] = {v_mean.x, v_mean.y, v_mean.z}, scales_out[3] = {v_scale.x, v_scale.y, v_scale.z};
  const float colors_out[3] = {v_color.x, v_color.y, v_color.z}, quats_out[4] = {w.w, w.x, w.y, w.z};
  for (int i = 0; i < 3; ++i) {
    v_means[3 * g + i] = means_out[i];
    v_scales[3 * g + i] = scales_out[i];
    v_colors[3 * g + i] = colors_out[i];
  }
  for (int i = 0; i < 4; ++i) v_quats[4 * g + i] = quats_out[i];
  v_opacities[g] = v_opacity;
}
