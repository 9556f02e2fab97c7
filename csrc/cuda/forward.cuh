// Forward: each team sums the samples of one pair.
#pragma once

#include "sampling.cuh"

namespace ddetr {

template <typename T, typename Source>
struct ForwardParams {
  Problem problem;
  Source source;
  const T* value;
  T* output;   // (N, Q, M * D)
  bool tiled;  // Queries are the positions of the maps: see `query_in_tile`.
};

// With fewer warps than this on a multiprocessor, the latency of a pair is not hidden by others.
constexpr int kBusyWarps = 16;

// Where queries are the positions of the maps, a block takes a tile of kTileWidth columns. This is
// only an order of work, but the samples of a tile overlap much more than those of a row.
constexpr int kTileWidth = 8;

// kVector channels per lane, kLanes lanes across the channels of one position. A team of kTeam
// lanes splits its samples into kTeam / kLanes parts: one when there are many pairs, more when
// there are few and the latency of a pair counts.
template <int kVector_, int kLanes_, int kTeam_>
struct Shape {
  static constexpr int kVector = kVector_;
  static constexpr int kLanes = kLanes_;
  static constexpr int kTeam = kTeam_;
  static constexpr int kParts = kTeam / kLanes;
  static constexpr int kSamples = 2 * kTeam < 32 ? 2 * kTeam : 32;  // Staged at once.
  static constexpr int kThreads = kTeam == kLanes ? 256 : 128;
  static constexpr int kTeams = kThreads / kTeam;
  static constexpr int kTileHeight = kTeam == kLanes ? kTeams / kTileWidth : 0;  // <= 1: no tiles.
  // Per multiprocessor. Many pairs: 48 warps, at the price of a few spills outside of the loop.
  static constexpr int kBlocks = kTeam == kLanes && kMaxThreads >= 1536 ? 6 : 4;
};

__host__ __device__ inline int tiles_across(const Level& level) {
  return (level.width + kTileWidth - 1) / kTileWidth;
}

__host__ __device__ inline int tiles(const Level& level, int tile_height) {
  return level.height <= 0 ? 0
                           : tiles_across(level) * ((level.height + tile_height - 1) / tile_height);
}

// The query of the calling team in a grid of tiles, or -1.
template <int kTileHeight>
__device__ int query_in_tile(const Level* table, int team) {
  int tile = blockIdx.x, l = 0;
  for (int count = tiles(table[0], kTileHeight); tile >= count;
       count = tiles(table[++l], kTileHeight)) {
    tile -= count;
  }
  const Level& level = table[l];
  const int across = tiles_across(level);
  const int y = tile / across * kTileHeight + team / kTileWidth;
  const int x = tile % across * kTileWidth + team % kTileWidth;
  return y < level.height && x < level.width ? level.start + y * level.width + x : -1;
}

// Adds every kParts-th staged sample to the lane's channels. Where all samples of the warp are
// inside their maps, the usual case, there is no branch, and loads of several samples may overlap.
template <bool kAllInside, typename S, typename T, typename C>
__device__ void gather(const T* value, int row_bytes, const Staged<C, S::kSamples>& staged,
                       int part, int count, C (&sum)[S::kVector]) {
#pragma unroll(kAllInside && S::kParts > 1 ? 4 : 1)
  for (int i = part; i < count; i += S::kParts) {
    const int4 position = staged.position[i];
    if (!kAllInside && position.x < 0) {
      continue;
    }
    const Packed<C, 4> weight = staged.weight[i];
    C read[4][S::kVector];
    read_corners(value, row_bytes, position, read);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int v = 0; v < S::kVector; ++v) {
        sum[v] += weight.item[j] * read[j][v];
      }
    }
  }
}

template <typename T, typename Source, typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    forward_kernel(const __grid_constant__ ForwardParams<T, Source> params) {
  using C = Compute<T>;
  __shared__ Level table[kMaxLevels];
  __shared__ Staged<C, S::kSamples> stages[S::kTeams];
  const Problem& problem = params.problem;
  load_levels(problem, table);

  const int team = threadIdx.x / S::kTeam, lane = threadIdx.x % S::kTeam;
  const int part = lane / S::kLanes;
  auto& staged = stages[team];
  int query = static_cast<int>(blockIdx.x) * S::kTeams + team;
  if constexpr (S::kTileHeight > 1) {
    query = params.tiled ? query_in_tile<S::kTileHeight>(table, team) : query;
  }
  // Teams without a query compute along, since the lanes of a warp talk to each other.
  const bool active = query >= 0 && query < problem.queries;
  const int head = blockIdx.y;
  const int64_t image = problem.first_image + blockIdx.z;
  const Pair pair(problem, image, active ? query : 0, head);
  const T* map = params.value + image * problem.image_stride + head * problem.head_stride;
  const Attention<S::kTeam, Source, C> attention(params.source, pair.index * problem.samples,
                                                 problem.samples, lane);

  for (int first = 0; first < problem.channels; first += S::kVector * S::kLanes) {
    const int channel = first + lane % S::kLanes * S::kVector;
    const bool has_channel = channel < problem.channels;
    C sum[S::kVector] = {};
    Cursor cursor(table);
    for (int done = 0; done < problem.samples; done += S::kSamples) {
      const int count = min(S::kSamples, problem.samples - done);
      bool inside = true;
      __syncwarp();  // The samples staged before have been read.
#pragma unroll
      for (int i = lane; i < S::kSamples; i += S::kTeam) {
        if (i < count) {
          const int k = done + i;
          const C weight = widen(params.source.weights[pair.index * problem.samples + k]);
          const Sample<C> sample =
              locate(params.source, problem, pair, k, cursor, table, attention(weight));
          staged.put(i, sample, table[sample.level]);
          inside = inside && sample.inside;
        }
      }
      __syncwarp();  // The vote below does not order memory.
      const T* source = map + (has_channel ? channel : 0);
      if (__all_sync(kWarp, inside)) {
        gather<true, S>(source, problem.row_bytes, staged, part, count, sum);
      } else {
        gather<false, S>(source, problem.row_bytes, staged, part, count, sum);
      }
    }
#pragma unroll
    for (int v = 0; v < S::kVector; ++v) {
#pragma unroll
      for (int offset = S::kLanes; offset < S::kTeam; offset *= 2) {
        sum[v] += __shfl_xor_sync(kWarp, sum[v], offset);
      }
    }
    if (active && has_channel && part == 0) {
      store(params.output + pair.index * problem.channels + channel, sum);
    }
  }
}

// Chooses among the forward kernels by the amount of work; they agree up to rounding.
template <typename T, typename Source>
void forward(ForwardParams<T, Source> params, Stream stream) {
  const Problem& problem = params.problem;
  with_layout<T>(problem, {params.value, params.output}, [&](auto layout) {
    using Layout = decltype(layout);
    using Wide = Shape<Layout::kVector, Layout::kLanes, Layout::kLanes>;
    using Deep = Shape<Layout::kVector, Layout::kLanes, 32>;
    const auto run = [&](auto shape, int blocks) {
      using S = decltype(shape);
      launch_images(forward_kernel<T, Source, S>, params, blocks, S::kThreads, 0, stream);
    };
    const int64_t warps = problem.images * problem.queries * problem.heads * Layout::kLanes / 32;
    const Levels& levels = problem.levels;
    params.tiled = false;
    if (warps < kBusyWarps * problem.multiprocessors) {
      run(Deep{}, (problem.queries - 1) / Deep::kTeams + 1);
    } else if (problem.queries == problem.positions && levels.shapes == nullptr &&
               Wide::kTileHeight > 1) {
      int blocks = 0;
      for (int l = 0; l < levels.count; ++l) {
        blocks += tiles(levels.level[l], Wide::kTileHeight);
      }
      params.tiled = true;
      run(Wide{}, blocks);
    } else {
      run(Wide{}, (problem.queries - 1) / Wide::kTeams + 1);
    }
  });
}

}  // namespace ddetr
