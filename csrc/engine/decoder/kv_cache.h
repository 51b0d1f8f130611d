// Keys and values of one sequence: the one place that knows where a layer's and head's share of the memory lies. What
// is within a head's share is said in decoder_args.h.
//
// Capacity is given at the beginning and memory is taken from the system once; pages that are not written to do not
// count until then. Sequences of a batch have a cache each, so they come and go independently of each other.
#pragma once

#include <atomic>
#include <stdexcept>
#include <string>

#include "model.h"

namespace approxrt {

class KvCache {
  public:
    KvCache(const DecoderModel& model, CacheKind kind, int64_t capacity)
        : kind_(kind), capacity_(capacity), tokens_(round_up(capacity, kCacheBlock)) {
        size_t end = 0;
        for (const TransformerLayer& layer : model.layers) {
            places_.push_back({end, layer.head_dim, layer.keep ? &layer : nullptr});
            end += head_bytes(places_.back()) * layer.num_kv_heads;
        }
        memory_ = AlignedBuffer(end);
    }

    CacheHead head(int32_t layer, int32_t kv_head) const {
        const Place& place = places_[layer];
        char* at = memory_.as<char>() + place.begin + head_bytes(place) * kv_head;
        CacheHead head{.kind = kind_,
                       .head_dim = place.head_dim,
                       .capacity = tokens_,
                       .keys = at,
                       .values = at + key_bytes(place.head_dim),
                       .key_scales = nullptr,
                       .value_scales = nullptr,
                       .key_rows = nullptr};
        at += dense_bytes(place.head_dim);
        if (kind_ == CacheKind::kInt8) {
            head.key_scales = reinterpret_cast<float*>(at - scale_bytes());
            head.value_scales = head.key_scales + tokens_;
        }
        if (place.signs) head.key_rows = at;
        return head;
    }
    // What lies beside the keys of a layer that matches signs.
    SignHead sign_head(int32_t layer, int32_t kv_head) const {
        const Place& place = places_[layer];
        const TransformerLayer& l = *place.signs;
        char* at = memory_.as<char>() + place.begin + head_bytes(place) * kv_head + dense_bytes(place.head_dim) +
                   value_bytes(place.head_dim);
        SignHead sign{.signs = l.signs,
                      .planes = reinterpret_cast<uint64_t*>(at),
                      .key_sums = nullptr,
                      .value_sums = nullptr,
                      .rotation = nullptr,
                      .centre = nullptr};
        if (l.rest) {
            sign.key_sums = reinterpret_cast<float*>(at + plane_bytes(l));
            sign.value_sums = sign.key_sums + sum_floats(l);
        }
        const int64_t signs = round_up(l.signs, 16);
        if (!l.rotation.empty()) {
            sign.rotation = l.rotation.data() + kv_head * l.head_dim * signs;
            sign.centre = l.centre.data() + kv_head * signs;
        }
        return sign;
    }

    int64_t capacity() const { return capacity_; }
    int64_t length() const { return length_; }
    // Forgets all but the first `length` tokens.
    void truncate(int64_t length) {
        if (length < 0 || length > length_)
            throw std::invalid_argument("cannot keep " + std::to_string(length) + " of " + std::to_string(length_) +
                                        " tokens");
        length_ = length;
    }
    void advance(int64_t tokens) { length_ += tokens; }
    size_t bytes() const { return memory_.size(); }

    // One step at a time: false if another thread is in one.
    bool enter() { return !busy_.exchange(true); }
    void leave() { busy_ = false; }

  private:
    struct Place {
        size_t begin;
        int32_t head_dim;
        const TransformerLayer* signs;  // a layer that matches signs
    };
    size_t key_bytes(int64_t dim) const {
        return round_up(cache_key_elements(tokens_, dim) * cache_element_size(kind_), 64);
    }
    size_t value_bytes(int64_t dim) const {
        return round_up(cache_value_elements(tokens_, dim) * cache_element_size(kind_), 64);
    }
    size_t scale_bytes() const {
        return kind_ == CacheKind::kInt8 ? round_up(2 * tokens_ * static_cast<int64_t>(sizeof(float)), 64) : 0;
    }
    size_t dense_bytes(int64_t dim) const { return key_bytes(dim) + value_bytes(dim) + scale_bytes(); }
    size_t plane_bytes(const TransformerLayer& l) const {
        return sizeof(uint64_t) * sign_plane_words(tokens_, l.signs);
    }
    int64_t sum_floats(const TransformerLayer& l) const { return (tokens_ / kSumBlock + 1) * round_up(l.head_dim, 16); }
    size_t head_bytes(const Place& place) const {
        size_t bytes = dense_bytes(place.head_dim);
        if (!place.signs) return bytes;
        // Keys once more, laid as values are; planes; sums.
        bytes += value_bytes(place.head_dim) + plane_bytes(*place.signs);
        return bytes + (place.signs->rest ? 2 * sizeof(float) * sum_floats(*place.signs) : 0);
    }

    const CacheKind kind_;
    const int64_t capacity_, tokens_;
    int64_t length_ = 0;
    std::vector<Place> places_;
    AlignedBuffer memory_;
    std::atomic<bool> busy_{false};
};

}  // namespace approxrt
