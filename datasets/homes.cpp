#include "datasets/homes.h"

#include <cstdlib>
#include <string_view>

#include "datasets/files.h"
#include "graph/error.h"

namespace heed {
namespace {

struct File {
  const char* name;
  std::uint64_t bytes;
  const char* sha256;
};

struct Home {
  const char* dataset;
  const char* url;  // of the folder
  std::vector<File> files;
};

constexpr const char* kPlanetoid = "https://github.com/kimiyoung/planetoid/raw/master/data/";
constexpr const char* kBenchmark = "https://github.com/shchur/gnn-benchmark/raw/master/data/npz/";
constexpr const char* kHeterophilous = "https://github.com/yandex-research/heterophilous-graphs/raw/main/data/";

const std::vector<Home>& homes() {
  static const std::vector<Home> list{
      {"cora",
       kPlanetoid,
       {{"ind.cora.x", 22119, "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab"},
        {"ind.cora.tx", 148025, "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a"},
        {"ind.cora.allx", 257305, "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543"},
        {"ind.cora.y", 4054, "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1"},
        {"ind.cora.ty", 28135, "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad"},
        {"ind.cora.ally", 47959, "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71"},
        {"ind.cora.graph", 59847, "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d"},
        {"ind.cora.test.index", 5000, "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875"}}},
      {"citeseer",
       kPlanetoid,
       {{"ind.citeseer.x", 31087, "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6"},
        {"ind.citeseer.tx", 260321, "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21"},
        {"ind.citeseer.allx", 595021, "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668"},
        {"ind.citeseer.y", 3014, "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924"},
        {"ind.citeseer.ty", 24135, "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce"},
        {"ind.citeseer.ally", 55623, "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95"},
        {"ind.citeseer.graph", 61987, "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7"},
        {"ind.citeseer.test.index", 5000, "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4"}}},
      {"pubmed",
       kPlanetoid,
       {{"ind.pubmed.x", 23172, "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33"},
        {"ind.pubmed.tx", 405505, "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d"},
        {"ind.pubmed.allx", 7578385, "508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e"},
        {"ind.pubmed.y", 854, "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3"},
        {"ind.pubmed.ty", 12135, "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd"},
        {"ind.pubmed.ally", 224739, "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e"},
        {"ind.pubmed.graph", 471808, "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9"},
        {"ind.pubmed.test.index", 6000, "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5"}}},
      {"amazon_photo",
       kBenchmark,
       {{"amazon_electronics_photo.npz", 17113960,
         "bdb1feb8e6ff42ee44024b04479145029c563fd42fc31bff80af20887ba0439a"}}},
      {"coauthor_physics",
       kBenchmark,
       {{"ms_academic_phy.npz", 16374005, "e4d68468eba5fb8f6b280ffd406bd53e6e4295ba1dd2967d6fe99b978e4b3375"}}},
      {"minesweeper",
       kHeterophilous,
       {{"minesweeper.npz", 135045, "e664c8dacf1e8ac466c2c09ed4b237bd2c5541f47a6eae9c6092cb87f16412b3"}}},
      {"actor",
       kHeterophilous,
       {{"actor.npz", 252956, "c350eef06b2c2a9bf8218be2b57cac6d4003d0922eb597a039e9123f75817816"}}},
      {"chameleon_filtered",
       kHeterophilous,
       {{"chameleon_filtered.npz", 58924, "bf46f07e1fb5249280447e5fe3100f3e82fc4b93ad1e13ffcfdec924b6ac0bb5"}}},
      {"texas",
       kHeterophilous,
       {{"texas.npz", 28586, "b164b99e6c3d43e4ab07488ec59bd8c815f90cbc1bd4cf425ce587d2b534d844"}}}};
  return list;
}

std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::vector<RemoteFile> remote_files(const std::string& dataset) {
  std::vector<RemoteFile> out;
  for (const Home& home : homes()) {
    if (dataset != home.dataset) continue;
    std::string url = home.url;
    if (const auto mirror = variable("HEED_MIRROR"); !mirror.empty())
      url = std::string(mirror) + (mirror.ends_with('/') ? "" : "/") + dataset + "/";
    for (const File& file : home.files) out.push_back({file.name, url + file.name, file.bytes, file.sha256});
  }
  return out;
}

bool offline() {
  const auto value = variable("HEED_OFFLINE");
  return !value.empty() && value != "0";
}

void fetch(const std::string& dataset, const std::string& folder, const std::filesystem::path& data,
           const DownloadProgress& progress) {
  const auto files = remote_files(dataset);
  if (files.empty() || offline()) return;
  const std::filesystem::path cache = cache_folder();
  const auto found = look_for({dataset, folder}, files[0].name, data);
  if (!found.empty() && found != cache / dataset) return;  // somebody else's folder
  if (cache.empty()) fail("dataset '" + dataset + "' has nowhere to go: neither XDG_CACHE_HOME nor HOME is set");
  try {
    download(files, cache / dataset, {.what = dataset, .progress = progress});
  } catch (const Error& e) {
    fail(std::string(e.what()) + "; where the files are here already, --data or $HEED_DATA names their folder");
  }
}

}  // namespace heed
